//! EndpointSlices → counts.
//!
//! Counted per slice, so that a change of one costs one; slices of a Service are added up. An address
//! that is in two slices of a Service at once (the EndpointSlice controller moves endpoints so, for a
//! moment) counts twice: to tell would mean to keep every address.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::snapshot::EndpointCounts;
use fairlead_model::{Json, NsName};

use crate::raw;

/// Zones told apart per Service; endpoints of further ones count as without a zone.
const ZONES_MAX: usize = 64;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// What one slice counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceCounts {
    /// Its family.
    pub family: Family,
    /// Counts by zone; the empty name stands for none.
    pub zones: BTreeMap<String, EndpointCounts>,
    /// Endpoints that do not count because the slice names no port to reach them at.
    pub without_port: u32,
}

/// The Service that a slice belongs to; none for slices of no Service of this cluster.
pub fn slice_service(slice: &Json) -> Option<NsName> {
    let namespace = raw::text(slice, "/metadata/namespace")?;
    let service = raw::label(slice, keys::SERVICE_NAME).filter(|name| !name.is_empty())?;
    Some(NsName::new(namespace, service))
}

/// Counts a slice; none when it says nothing about endpoints that traffic can go to (`FQDN` slices
/// have no meaning; slices that are being deleted are replaced by others).
pub fn ingest_slice_counts(slice: &Json) -> Option<SliceCounts> {
    let family = match slice.get("addressType").and_then(Json::as_str)? {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    if raw::is_deleting(slice) {
        return None;
    }
    let mut counts = SliceCounts { family, zones: BTreeMap::new(), without_port: 0 };
    let has_ports = !raw::list(slice, "/ports").is_empty();
    for endpoint in raw::list(slice, "/endpoints") {
        let condition = |name: &str| endpoint.get("conditions")?.get(name)?.as_bool();
        if condition("terminating") == Some(true) || raw::list(endpoint, "/addresses").is_empty() {
            continue;
        }
        if !has_ports {
            counts.without_port = counts.without_port.saturating_add(1);
            continue;
        }
        let zone = raw::field(endpoint, "zone").unwrap_or_default();
        let zone = room(&mut counts.zones, zone);
        zone.total = zone.total.saturating_add(1);
        // Not said means ready, as the EndpointSlice API has it.
        zone.ready = zone.ready.saturating_add(u32::from(condition("ready").unwrap_or(true)));
    }
    Some(counts)
}

/// The counts of a zone, or of no zone when there are too many of them.
fn room<'a>(zones: &'a mut BTreeMap<String, EndpointCounts>, zone: &str) -> &'a mut EndpointCounts {
    let known = zones.contains_key(zone) || zones.len() < ZONES_MAX;
    zones.entry(if known { zone.to_owned() } else { String::new() }).or_default()
}

/// Adds up the slices of a Service. In a dual-stack Service every endpoint is in a slice of each
/// family, so the family that counts more is taken, and IPv4 of two equal ones.
pub fn sum_slice_counts<'a>(
    slices: impl IntoIterator<Item = &'a SliceCounts>,
) -> BTreeMap<String, EndpointCounts> {
    let mut families: BTreeMap<Family, BTreeMap<String, EndpointCounts>> = BTreeMap::new();
    for slice in slices {
        let zones = families.entry(slice.family).or_default();
        for (zone, counts) in &slice.zones {
            let sum = room(zones, zone);
            sum.ready = sum.ready.saturating_add(counts.ready);
            sum.total = sum.total.saturating_add(counts.total);
        }
    }
    let weight = |zones: &BTreeMap<String, EndpointCounts>| {
        let sum =
            |of: fn(&EndpointCounts) -> u32| zones.values().map(|c| u64::from(of(c))).sum::<u64>();
        (sum(|c| c.total), sum(|c| c.ready))
    };
    let best = families.into_iter().rev().max_by_key(|(_, zones)| weight(zones));
    best.map(|(_, zones)| zones).unwrap_or_default()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn slice(family: &str, endpoints: Json) -> Json {
        json!({"addressType": family, "ports": [{"name": "http", "port": 80}], "endpoints": endpoints})
    }

    fn total(slices: &[Json]) -> (u32, u32) {
        let counts: Vec<SliceCounts> = slices.iter().filter_map(ingest_slice_counts).collect();
        let zones = sum_slice_counts(&counts);
        (zones.values().map(|c| c.ready).sum(), zones.values().map(|c| c.total).sum())
    }

    fn endpoint(conditions: Json) -> Json {
        json!({"addresses": ["192.0.2.1"], "conditions": conditions})
    }

    #[test]
    fn ready_that_is_not_said_is_ready() {
        let bare = json!({"addresses": ["192.0.2.1"]});
        let endpoints = json!([
            bare,
            endpoint(json!({})),
            endpoint(json!({"ready": null})),
            endpoint(json!({"ready": false}))
        ]);
        assert_eq!(total(&[slice("IPv4", endpoints)]), (3, 4));
    }

    #[test]
    fn terminating_endpoints_do_not_count() {
        let endpoints = json!([
            endpoint(json!({"ready": true, "terminating": true})),
            endpoint(json!({"terminating": false}))
        ]);
        assert_eq!(total(&[slice("IPv4", endpoints)]), (1, 1));
    }

    #[test]
    fn dual_stack_counts_once_by_the_larger_family() {
        let one = json!([endpoint(json!({}))]);
        let two = json!([endpoint(json!({})), endpoint(json!({}))]);
        assert_eq!(total(&[slice("IPv4", one.clone()), slice("IPv6", one.clone())]), (1, 1));
        assert_eq!(total(&[slice("IPv4", one), slice("IPv6", two)]), (2, 2));
    }

    #[test]
    fn names_and_slices_without_ports_are_not_counted() {
        let endpoints = json!([endpoint(json!({}))]);
        assert_eq!(ingest_slice_counts(&slice("FQDN", endpoints.clone())), None);
        let mut bare = slice("IPv4", endpoints);
        bare["ports"] = json!(null);
        let counts = ingest_slice_counts(&bare).unwrap();
        assert_eq!((counts.zones.len(), counts.without_port), (0, 1));
    }

    #[test]
    fn thousands_of_endpoints_and_zones_stay_bounded() {
        let many: Vec<Json> = (0..5_000)
            .map(|at| json!({"addresses": ["192.0.2.1"], "zone": format!("z{at}")}))
            .collect();
        let counts = ingest_slice_counts(&slice("IPv4", many.into())).unwrap();
        assert!(counts.zones.len() <= ZONES_MAX + 1);
        assert_eq!(counts.zones.values().map(|zone| zone.total).sum::<u32>(), 5_000);
    }

    #[test]
    fn zones_are_told_apart() {
        let endpoints = json!([{"addresses": ["192.0.2.1"], "zone": "a"}, {"addresses": ["192.0.2.2"], "zone": "b"}, {"addresses": ["192.0.2.3"]}]);
        let counts = ingest_slice_counts(&slice("IPv4", endpoints)).unwrap();
        assert_eq!(counts.zones.keys().collect::<Vec<_>>(), ["", "a", "b"]);
    }
}
