//! Where a member is, as its nodes say.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_model::Json;

use crate::raw;

/// The region that most nodes name, and the zone that most nodes of that region name. Ties go to the
/// name that comes first.
pub fn ingest_location<'a>(
    nodes: impl IntoIterator<Item = &'a Json>,
) -> (Option<String>, Option<String>) {
    let places: Vec<(Option<&str>, Option<&str>)> = nodes
        .into_iter()
        .map(|node| {
            (raw::label(node, keys::TOPOLOGY_REGION), raw::label(node, keys::TOPOLOGY_ZONE))
        })
        .collect();
    let region = most(places.iter().filter_map(|(region, _)| *region));
    let zones = places.iter().filter(|(other, _)| *other == region).filter_map(|(_, zone)| *zone);
    (region.map(str::to_owned), most(zones).map(str::to_owned))
}

fn most<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for name in names.filter(|name| !name.is_empty()) {
        *counts.entry(name).or_default() += 1;
    }
    let best = counts.iter().rev().max_by_key(|(_, count)| **count);
    best.map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(places: &[(&str, &str)]) -> (Option<String>, Option<String>) {
        let node = |(region, zone): &(&str, &str)| {
            json!({"metadata": {"labels": {
                "topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone}}})
        };
        let nodes: Vec<Json> = places.iter().map(node).collect();
        ingest_location(&nodes)
    }

    fn some(region: &str, zone: &str) -> (Option<String>, Option<String>) {
        (Some(region.to_owned()), Some(zone.to_owned()))
    }

    #[test]
    fn most_nodes_decide() {
        assert_eq!(of(&[("eu", "eu-b"), ("eu", "eu-b"), ("us", "us-a")]), some("eu", "eu-b"));
        assert_eq!(of(&[]), (None, None));
    }

    #[test]
    fn zone_is_one_of_the_region() {
        assert_eq!(
            of(&[("eu", "a"), ("eu", "b"), ("us", "z"), ("us", "z"), ("eu", "c")]),
            some("eu", "a")
        );
    }

    #[test]
    fn ties_go_to_the_first_name() {
        assert_eq!(of(&[("us", "z"), ("eu", "y"), ("us", "x"), ("eu", "w")]), some("eu", "w"));
    }
}
