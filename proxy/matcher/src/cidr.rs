//! Address ranges and sets of them. IPv4-mapped IPv6 addresses are seen as IPv4.
//! Source: `envoy/config/core/v3/address.proto` CidrRange, Envoy's `network/cidr_range.cc`.

use crate::compile_all;
use nuncio_core::diag::{At, Report};
use nuncio_proto::envoy::config::core::v3 as core;
use nuncio_proto::xds::core::v3 as xds;
use std::fmt;
use std::net::IpAddr;

/// An address range; the bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    base: IpAddr,
    length: u8,
}

impl Cidr {
    /// The range of `length` bits that holds `address`; none if the family has fewer bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let width = if address.is_ipv4() { 32 } else { 128 };
        (length <= width).then(|| Self { base: masked(address, length), length })
    }
    /// Compiles `envoy.config.core.v3.CidrRange`. A missing prefix length is 0, as in Envoy.
    pub fn compile(range: &core::CidrRange, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::parse(&range.address_prefix, range.prefix_len, at, report)
    }
    /// Compiles `xds.core.v3.CidrRange`.
    pub fn compile_xds(range: &xds::CidrRange, at: &At<'_>, report: &mut Report) -> Option<Self> {
        Self::parse(&range.address_prefix, range.prefix_len, at, report)
    }
    fn parse(address: &str, length: Option<u32>, at: &At<'_>, report: &mut Report) -> Option<Self> {
        let Ok(parsed) = address.parse::<IpAddr>() else {
            report.error(&at.field("address_prefix"), format!("\"{address}\""), "give an IPv4 or IPv6 address");
            return None;
        };
        let length = length.unwrap_or(0);
        let range = u8::try_from(length).ok().and_then(|length| Self::new(parsed, length));
        if range.is_none() {
            report.error(&at.field("prefix_len"), length.to_string(), "give at most 32 for IPv4 and 128 for IPv6");
        }
        range
    }
    /// Whether `address` is in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.base.is_ipv4() && masked(address, self.length) == self.base
    }
    /// Number of leading bits that are fixed.
    pub fn length(&self) -> u8 {
        self.length
    }
    /// First address of the range.
    pub fn base(&self) -> IpAddr {
        self.base
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.length)
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a) & u32::MAX.checked_shl(32 - length).unwrap_or(0)).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a) & u128::MAX.checked_shl(128 - length).unwrap_or(0)).into()),
    }
}

/// A set of ranges, kept as sorted disjoint intervals: a lookup is one binary search, however many ranges there are.
#[derive(Clone, Debug, Default)]
pub struct IpSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl IpSet {
    /// Compiles a repeated `envoy.config.core.v3.CidrRange`.
    pub fn compile(ranges: &[core::CidrRange], at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(Self::new(&compile_all(ranges, at, report, Cidr::compile)?))
    }
    /// Compiles a repeated `xds.core.v3.CidrRange`.
    pub fn compile_xds(ranges: &[xds::CidrRange], at: &At<'_>, report: &mut Report) -> Option<Self> {
        Some(Self::new(&compile_all(ranges, at, report, Cidr::compile_xds)?))
    }
    /// The union of `ranges`.
    pub fn new(ranges: &[Cidr]) -> Self {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for range in ranges {
            let length = u32::from(range.length);
            match range.base {
                IpAddr::V4(a) => v4.push((u32::from(a), u32::from(a) | u32::MAX.checked_shr(length).unwrap_or(0))),
                IpAddr::V6(a) => v6.push((u128::from(a), u128::from(a) | u128::MAX.checked_shr(length).unwrap_or(0))),
            }
        }
        Self { v4: disjoint(v4), v6: disjoint(v6) }
    }
    /// Whether some range holds `address`.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(a) => holds(&self.v4, u32::from(a)),
            IpAddr::V6(a) => holds(&self.v6, u128::from(a)),
        }
    }
    /// Whether there are no ranges.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

fn disjoint<T: Ord + Copy>(mut all: Vec<(T, T)>) -> Box<[(T, T)]> {
    all.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(all.len());
    for (start, end) in all {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged.into_boxed_slice()
}

fn holds<T: Ord + Copy>(intervals: &[(T, T)], value: T) -> bool {
    let after = intervals.partition_point(|(start, _)| *start <= value);
    after.checked_sub(1).and_then(|i| intervals.get(i)).is_some_and(|(_, end)| value <= *end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        let (address, length) = text.split_once('/').unwrap();
        Cidr::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    #[test]
    fn ranges() {
        for (range, address, wanted) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.1.2.3/8", "10.0.0.1", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("::/0", "fe80::1", true),
            ("2001:db8::/32", "2001:db8:1::", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("1.2.3.4/32", "1.2.3.4", true),
            ("1.2.3.4/32", "1.2.3.5", false),
        ] {
            assert_eq!(cidr(range).contains(address.parse().unwrap()), wanted, "{range} {address}");
            assert_eq!(IpSet::new(&[cidr(range)]).contains(address.parse().unwrap()), wanted, "set {range} {address}");
        }
        let mut report = Report::new();
        let bad = [core::CidrRange { address_prefix: "1.2.3.4".into(), prefix_len: Some(33) }];
        assert!(IpSet::compile(&bad, &At::Root.field("ranges"), &mut report).is_none());
        assert_eq!(report.summary(), "ranges[0].prefix_len: 33; give at most 32 for IPv4 and 128 for IPv6");
    }

    proptest! {
        #[test]
        fn a_set_is_the_union_of_its_ranges(ranges in prop::collection::vec((any::<u32>(), 0u8..=32), 0..20), probes in prop::collection::vec(any::<u32>(), 0..20)) {
            let ranges: Vec<_> = ranges.iter().filter_map(|(a, l)| Cidr::new(IpAddr::V4((*a).into()), *l)).collect();
            let set = IpSet::new(&ranges);
            let edges = ranges.iter().map(|r| r.base());
            for address in probes.into_iter().map(|a| IpAddr::V4(a.into())).chain(edges) {
                prop_assert_eq!(set.contains(address), ranges.iter().any(|r| r.contains(address)));
            }
        }
    }
}
