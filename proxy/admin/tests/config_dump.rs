//! `/config_dump` against what Envoy answered for the same configuration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // It is a test.

mod kit;

use std::rc::Rc;
use std::time::UNIX_EPOCH;

use kit::*;
use nuncio_admin::{ResourceKind, UpdateFailure, Version};
use serde_json::{Value, json};

/// Maps and Structs have no order; the elements of repeated fields have.
fn assert_same(ours: &str, envoys: &str) {
    let (ours_value, theirs): (Value, Value) = (serde_json::from_str(ours).unwrap(), serde_json::from_str(envoys).unwrap());
    assert_eq!(ours_value, theirs);
    assert_eq!(ours.lines().count(), envoys.lines().count(), "the layout differs");
}

#[test]
fn the_whole_dump_is_envoys() {
    with_admin(Rc::new(Fake::reference()), |at| async move {
        let answer = get(&at, "/config_dump?include_eds").await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: application/json\r\n"));
        // Envoy leaves the ECDS section out until an extension is discovered, and `istioctl proxy-config ecds` fails.
        let ecds = "  {\n   \"@type\": \"type.googleapis.com/envoy.admin.v3.EcdsConfigDump\"\n  },\n";
        assert!(answer.body.contains(ecds));
        assert_same(&answer.body.replace(ecds, ""), &reference("config_dump_include_eds.json"));
        let without: Value = serde_json::from_str(&get(&at, "/config_dump").await.body).unwrap();
        assert_eq!(without["configs"].as_array().unwrap().len(), 7);
        assert!(answer.body.contains("\"W3JlZGFjdGVkXQ==\""), "the private key is redacted");
    });
}

/// `istioctl proxy-config` asks with these masks.
#[test]
fn masks_select_sections_and_fields() {
    with_admin(Rc::new(Fake::reference()), |at| async move {
        let full: Value = serde_json::from_str(&reference("config_dump_include_eds.json")).unwrap();
        let sections = |text: &str| serde_json::from_str::<Value>(text).unwrap()["configs"].as_array().unwrap().clone();
        let clusters = sections(&get(&at, "/config_dump?mask=dynamic_active_clusters,dynamic_warming_clusters,static_clusters").await.body);
        assert_eq!(clusters.len(), 1);
        assert_eq!(clusters[0]["dynamic_active_clusters"], full["configs"][1]["dynamic_active_clusters"]);
        assert_eq!(clusters[0].get("version_info"), None);
        let bootstrap = sections(&get(&at, "/config_dump?mask=bootstrap.node.id").await.body);
        assert_eq!(bootstrap[0]["bootstrap"], json!({"node": {"id": full["configs"][0]["bootstrap"]["node"]["id"]}}));
        let versions = sections(&get(&at, "/config_dump?mask=version_info").await.body);
        assert_eq!(versions.len(), 2, "clusters and listeners");
        let secrets = sections(&get(&at, "/config_dump?mask=dynamic_active_secrets,dynamic_warming_secrets").await.body);
        assert_eq!(secrets[0]["dynamic_active_secrets"].as_array().unwrap().len(), 2);
        let bad = get(&at, "/config_dump?mask=zz").await;
        assert_eq!((bad.status, bad.body.as_str()), (400, "FieldMask zz could not be successfully applied to any configs.\n"));
    });
}

#[test]
fn one_resource() {
    with_admin(Rc::new(Fake::reference()), |at| async move {
        let dump: Value = serde_json::from_str(
            &get(&at, "/config_dump?resource=dynamic_active_clusters&mask=cluster.name&name_regex=outbound.*catalog.*").await.body,
        )
        .unwrap();
        let configs = dump["configs"].as_array().unwrap();
        assert_eq!(configs.len(), 3);
        let name = "outbound|80||catalog.shop.svc.cluster.local";
        let expected = json!({
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.DynamicCluster",
            "cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": name},
        });
        assert!(configs.contains(&expected), "{configs:?}");
        for (target, status, body) in [
            ("/config_dump?resource=nope", 404, "nope not found in config dump\n"),
            ("/config_dump?resource=dynamic_endpoint_configs", 404, "dynamic_endpoint_configs not found in config dump\n"),
            ("/config_dump?resource=bootstrap", 400, "bootstrap is not a repeated field. Use ?mask=bootstrap to get only this field\n"),
            (
                "/config_dump?resource=static_clusters&mask=cluster.zz",
                400,
                "FieldMask paths: \"cluster.zz\"\n could not be successfully used.\n",
            ),
            ("/config_dump?resource=static_clusters&name_regex=c", 200, "{}\n"),
            ("/config_dump?resource=ecds_filters", 200, "{}\n"),
        ] {
            let answer = get(&at, target).await;
            assert_eq!((answer.status, answer.body.as_str()), (status, body), "{target}");
        }
        let bad = get(&at, "/config_dump?name_regex=(").await;
        assert_eq!(bad.status, 400);
        assert!(bad.body.starts_with("INVALID_ARGUMENT: Error while parsing name_regex from (: "), "{}", bad.body);
        let all = get(&at, "/config_dump?resource=dynamic_endpoint_configs&include_eds").await;
        assert_eq!(serde_json::from_str::<Value>(&all.body).unwrap()["configs"].as_array().unwrap().len(), 8);
    });
}

/// What was refused is shown with its error, beside what still serves.
#[test]
fn refused_updates_have_an_error_state() {
    let mut fake = Fake::default();
    let url: std::sync::Arc<str> = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
    let error = UpdateFailure {
        configuration: Some((url.clone(), vec![0x0a, 0xff].into())),
        at: UNIX_EPOCH,
        details: "filter_chains: nonsense".into(),
        version_info: "2".into(),
    };
    let version = |text: &str| Version { version_info: text.into(), last_updated: UNIX_EPOCH, type_url: url.clone(), value: vec![].into() };
    let mut listener = resource("l", false, version("1"));
    listener.error = Some(error.clone());
    listener.draining = Some(version("0"));
    fake.resources.push((ResourceKind::Listener, listener));
    let mut route = resource("r", false, version("1"));
    route.active = None;
    route.error = Some(error);
    fake.resources.push((ResourceKind::Cluster, route.clone()));
    fake.resources.push((ResourceKind::ExtensionConfig, route.clone()));
    fake.resources.push((ResourceKind::Secret, route));
    with_admin(Rc::new(fake), |at| async move {
        let dump: Value = serde_json::from_str(&get(&at, "/config_dump").await.body).unwrap();
        let error = json!({
            // The bytes are no listener, so they may hold anything.
            "failed_configuration": {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "value": "W3JlZGFjdGVkXQ=="},
            "last_update_attempt": "1970-01-01T00:00:00Z",
            "details": "filter_chains: nonsense",
            "version_info": "2",
        });
        let listeners = dump["configs"].as_array().unwrap().iter().find(|c| c["@type"].as_str().unwrap().contains("Listeners")).unwrap();
        let listener = &listeners["dynamic_listeners"][0];
        assert_eq!(listener["error_state"], error);
        assert_eq!(listener["client_status"], "NACKED");
        assert_eq!(listener["draining_state"]["version_info"], "0");
        let clusters = &dump["configs"][1];
        assert_eq!(clusters["dynamic_warming_clusters"], json!([{"error_state": error, "client_status": "NACKED"}]));
        assert_eq!(clusters.get("dynamic_active_clusters"), None);
        assert_eq!(dump["configs"][2]["ecds_filters"][0]["error_state"], error);
        let secret = &dump["configs"].as_array().unwrap().last().unwrap()["dynamic_warming_secrets"][0];
        let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        assert_eq!(secret["secret"], json!({"@type": url, "name": "r"}));
    });
}
