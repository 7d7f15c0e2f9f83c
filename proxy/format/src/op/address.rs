//! Addresses: with port, without, masked to a prefix, or the port alone.

use super::{Written, decimal};
use crate::FormatContext;
use nuncio_core::Address;
use std::io::Write;
use std::net::IpAddr;

/// Whose address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AddressOf {
    DownstreamRemote,
    DownstreamDirectRemote,
    DownstreamLocal,
    DownstreamDirectLocal,
    UpstreamLocal,
    UpstreamRemote,
    /// The chosen host's.
    UpstreamHost,
}

/// Which part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AddressForm {
    Full,
    WithoutPort,
    /// CIDR notation of that many bits (capped at the address's own).
    Masked(u8),
    Port,
    /// Endpoint id of an internal address; empty for others, as in Envoy.
    EndpointId,
}

fn ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                if i > 0 {
                    out.push(b'.');
                }
                decimal(out, octet);
            }
        }
        IpAddr::V6(v6) => {
            let _ = write!(out, "{v6}");
        }
    }
}

/// Appends `address` as Envoy writes it.
pub(crate) fn full(out: &mut Vec<u8>, address: &Address) {
    match address {
        Address::Ip(a) => {
            if a.is_ipv6() {
                out.push(b'[');
            }
            ip(out, a.ip());
            if a.is_ipv6() {
                out.push(b']');
            }
            out.push(b':');
            decimal(out, a.port());
        }
        Address::Pipe(path) => out.extend_from_slice(path.as_bytes()),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// Appends `address` without its port.
pub(crate) fn without_port(out: &mut Vec<u8>, address: &Address) {
    match address {
        Address::Ip(a) => ip(out, a.ip()),
        other => full(out, other),
    }
}

fn masked(out: &mut Vec<u8>, address: IpAddr, bits: u8) {
    let (network, bits) = match address {
        IpAddr::V4(v4) => {
            let bits = bits.min(32);
            (IpAddr::V4((u32::from(v4) & u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0)).into()), bits)
        }
        IpAddr::V6(v6) => {
            let bits = bits.min(128);
            (IpAddr::V6((u128::from(v6) & u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0)).into()), bits)
        }
    };
    ip(out, network);
    out.push(b'/');
    decimal(out, bits);
}

impl AddressOf {
    pub fn find<'a>(self, cx: &FormatContext<'a>) -> Option<&'a Address> {
        let info = cx.info;
        let upstream = info.upstream.as_deref();
        match self {
            Self::DownstreamRemote => Some(&info.remote),
            Self::DownstreamDirectRemote => Some(&info.connection.direct_remote),
            Self::DownstreamLocal => Some(&info.connection.local),
            Self::DownstreamDirectLocal => Some(&info.connection.direct_local),
            Self::UpstreamLocal => upstream?.local.as_ref(),
            Self::UpstreamRemote => upstream?.remote.as_ref(),
            Self::UpstreamHost => upstream?.host.as_ref().map(|h| h.address()),
        }
    }
    pub fn write(self, cx: &FormatContext<'_>, form: AddressForm, out: &mut Vec<u8>) -> Written {
        let Some(address) = self.find(cx) else {
            // An id that does not apply is empty, an unknown address is missing.
            return if matches!(form, AddressForm::EndpointId) { Written::Text } else { Written::Missing };
        };
        match (form, address) {
            (AddressForm::Full, a) => full(out, a),
            (AddressForm::WithoutPort, a) => without_port(out, a),
            (AddressForm::Masked(bits), Address::Ip(a)) => masked(out, a.ip(), bits),
            (AddressForm::Port, Address::Ip(a)) => {
                decimal(out, a.port());
                return Written::Json;
            }
            (AddressForm::EndpointId, Address::Internal(_, id)) => out.extend_from_slice(id.as_bytes()),
            (AddressForm::EndpointId, _) => {}
            (AddressForm::Masked(_) | AddressForm::Port, _) => return Written::Missing,
        }
        Written::Text
    }
}
