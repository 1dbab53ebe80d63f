//! A bundle as a ledger: one entry per object, recipe and peer.

use std::collections::BTreeMap;

use fairlead_model::bundle::{
    Bundle, BundleObject, Capability, Claim, CrossingCa, Gate, Peer, RuleId,
};
use fairlead_model::dns::{DnsName, RecordSet};
use fairlead_model::ledger::Ledger;
use fairlead_model::recipe::{
    Candidate, Recipe, RecipeBackend, RecipeTier, Serve, Split, Standing, WhenUnavailable,
};
use fairlead_model::snapshot::{Address, ENDORSEMENTS_MAX};
use fairlead_model::{ClusterUid, MemberId, Note, ObjectId, Reason};
use prost::Message as _;

use crate::dns_item;
use crate::pb;
use crate::pb::bundle_item::Item;

/// The ledger of a bundle. Its number is not part of it.
pub fn bundle_to_ledger(bundle: &Bundle) -> Ledger {
    let mut entries = BTreeMap::new();
    let mut add = |key: String, item: Item| {
        entries.insert(key, pb::BundleItem { item: Some(item) }.encode_to_vec());
    };
    for (id, object) in &bundle.objects {
        add(format!("object/{id}"), Item::Object(object_to_pb(object)));
    }
    for (id, recipe) in &bundle.recipes {
        add(format!("recipe/{id}"), Item::Recipe(recipe_to_pb(id, recipe)));
    }
    for (member, peer) in &bundle.peers {
        add(format!("peer/{member}"), Item::Peer(peer_to_pb(member, peer)));
    }
    for (member, ca) in &bundle.cas {
        add(format!("ca/{member}"), Item::CrossingCa(ca_to_pb(member, ca)));
    }
    for (key, item) in dns_item::zones_to_items(&bundle.zones) {
        add(key, item);
    }
    Ledger::new(entries)
}

/// The bundle of a ledger (without number), and notes on entries that could not be read.
///
/// An object's id is taken from its own JSON, never from the key.
pub fn ledger_to_bundle(ledger: &Ledger) -> (Bundle, Vec<Note>) {
    let (mut bundle, mut notes) = (Bundle::default(), Vec::new());
    let mut record_sets = Vec::new();
    for (key, bytes) in ledger.entries() {
        let item = pb::BundleItem::decode(bytes.as_slice()).ok().and_then(|i| i.item);
        let Some(item) = item else {
            notes.push(Note::new(key, Reason::Unreadable, "entry of an unknown kind was left out"));
            continue;
        };
        if let Err(detail) = take(&mut bundle, &mut record_sets, item) {
            notes.push(Note::new(key, Reason::Unreadable, detail));
        }
    }
    dns_item::put_sets(&mut bundle.zones, record_sets, &mut notes);
    (bundle, notes)
}

fn take(
    bundle: &mut Bundle,
    record_sets: &mut Vec<(DnsName, DnsName, RecordSet)>,
    item: Item,
) -> Result<(), String> {
    match item {
        Item::DnsZone(zone) => {
            let (name, zone) = dns_item::zone_from_pb(zone)?;
            bundle.zones.insert(name, zone);
        }
        Item::DnsRecordSet(set) => record_sets.push(dns_item::set_from_pb(set)?),
        Item::Object(object) => {
            let (id, object) = object_from_pb(&object)?;
            bundle.objects.insert(id, object);
        }
        Item::Recipe(recipe) => {
            let (id, recipe) = recipe_from_pb(recipe)?;
            bundle.recipes.insert(id, recipe);
        }
        Item::Peer(peer) => {
            let (member, peer) = peer_from_pb(peer)?;
            bundle.peers.insert(member, peer);
        }
        Item::CrossingCa(ca) => {
            let (member, ca) = ca_from_pb(ca)?;
            bundle.cas.insert(member, ca);
        }
    }
    Ok(())
}

fn object_to_pb(object: &BundleObject) -> pb::BundleObject {
    pb::BundleObject {
        // serde_json sorts keys, so equal objects have equal bytes.
        json: object.content.to_string().into_bytes(),
        gate: match object.gate {
            Gate::Open => pb::Gate::Unspecified,
            Gate::DoorShut => pb::Gate::DoorShut,
            Gate::SniDoorShut => pb::Gate::SniDoorShut,
        }
        .into(),
        claim: match object.claim {
            Claim::Whole => pb::Claim::Unspecified,
            Claim::Fields => pb::Claim::Fields,
        }
        .into(),
    }
}

fn object_from_pb(object: &pb::BundleObject) -> Result<(ObjectId, BundleObject), String> {
    let content = serde_json::from_slice(&object.json).map_err(|e| e.to_string())?;
    let id = ObjectId::of(&content).map_err(|e| e.to_string())?;
    let gate = match object.gate() {
        pb::Gate::Unspecified => Gate::Open,
        pb::Gate::DoorShut => Gate::DoorShut,
        pb::Gate::SniDoorShut => Gate::SniDoorShut,
    };
    let claim = match object.claim() {
        pb::Claim::Unspecified => Claim::Whole,
        pb::Claim::Fields => Claim::Fields,
    };
    Ok((id, BundleObject { content, gate, claim }))
}

fn recipe_to_pb(id: &RuleId, recipe: &Recipe) -> pb::RuleRecipe {
    pb::RuleRecipe {
        rule: id.to_string(),
        version: recipe.version.into(),
        backends: recipe.backends.iter().map(backend_to_pb).collect(),
        weights: recipe.weights.clone(),
    }
}

fn recipe_from_pb(recipe: pb::RuleRecipe) -> Result<(RuleId, Recipe), String> {
    let id = recipe.rule.parse::<RuleId>().map_err(|e| e.to_string())?;
    let version = u16::try_from(recipe.version).map_err(|_| "version out of range")?;
    let backends =
        recipe.backends.into_iter().map(backend_from_pb).collect::<Result<_, String>>()?;
    Ok((id, Recipe { version, backends, weights: recipe.weights }))
}

fn backend_to_pb(backend: &RecipeBackend) -> pb::RecipeBackend {
    use pb::recipe_backend::Serve as PbServe;
    let serve = match &backend.serve {
        Serve::Fixed { slot } => PbServe::FixedSlot((*slot).into()),
        Serve::Members { service, port, tiers, when_unavailable } => {
            PbServe::Members(pb::ServedByMembers {
                service: service.to_string(),
                port: (*port).into(),
                tiers: tiers.iter().map(tier_to_pb).collect(),
                when_unavailable: match when_unavailable {
                    WhenUnavailable::Redistribute => pb::WhenUnavailable::Unspecified,
                    WhenUnavailable::Fail => pb::WhenUnavailable::Fail,
                }
                .into(),
            })
        }
    };
    pb::RecipeBackend { weight: backend.weight, serve: Some(serve) }
}

fn backend_from_pb(backend: pb::RecipeBackend) -> Result<RecipeBackend, String> {
    use pb::recipe_backend::Serve as PbServe;
    let serve = match backend.serve.ok_or("a backend that nobody serves")? {
        PbServe::FixedSlot(slot) => Serve::Fixed { slot: small(slot, "slot")? },
        PbServe::Members(members) => {
            let when_unavailable = match members.when_unavailable() {
                pb::WhenUnavailable::Unspecified => WhenUnavailable::Redistribute,
                pb::WhenUnavailable::Fail => WhenUnavailable::Fail,
            };
            Serve::Members {
                service: members
                    .service
                    .parse()
                    .map_err(|e: fairlead_model::IdError| e.to_string())?,
                port: small(members.port, "port")?,
                tiers: members.tiers.into_iter().map(tier_from_pb).collect::<Result<_, _>>()?,
                when_unavailable,
            }
        }
    };
    Ok(RecipeBackend { weight: backend.weight, serve })
}

fn tier_to_pb(tier: &RecipeTier) -> pb::RecipeTier {
    pb::RecipeTier {
        split: match tier.split {
            Split::Endpoints => pb::Split::Unspecified,
            Split::Equal => pb::Split::Equal,
            Split::Weights => pb::Split::Weights,
        }
        .into(),
        healthy_percent: tier.healthy_percent.into(),
        endpoints_min: tier.endpoints_min,
        candidates: tier.candidates.iter().map(candidate_to_pb).collect(),
    }
}

fn tier_from_pb(tier: pb::RecipeTier) -> Result<RecipeTier, String> {
    let split = match tier.split() {
        pb::Split::Unspecified => Split::Endpoints,
        pb::Split::Equal => Split::Equal,
        pb::Split::Weights => Split::Weights,
    };
    Ok(RecipeTier {
        split,
        healthy_percent: percent(tier.healthy_percent)?,
        endpoints_min: tier.endpoints_min,
        candidates: tier.candidates.into_iter().map(candidate_from_pb).collect::<Result<_, _>>()?,
    })
}

fn candidate_to_pb(candidate: &Candidate) -> pb::Candidate {
    pb::Candidate {
        member: candidate.member.to_string(),
        slot: candidate.slot.into(),
        ready: candidate.ready,
        expected: candidate.expected,
        weight: candidate.weight,
        ramp_percent: candidate.ramp_percent.into(),
        out: candidate.standing == Standing::Out,
    }
}

fn candidate_from_pb(candidate: pb::Candidate) -> Result<Candidate, String> {
    Ok(Candidate {
        member: MemberId::new(&candidate.member).map_err(|e| e.to_string())?,
        slot: small(candidate.slot, "slot")?,
        ready: candidate.ready,
        expected: candidate.expected,
        weight: candidate.weight,
        ramp_percent: percent(candidate.ramp_percent)?,
        standing: if candidate.out { Standing::Out } else { Standing::Able },
    })
}

fn percent(value: u32) -> Result<u8, String> {
    match u8::try_from(value) {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err(format!("{value} is not a percentage")),
    }
}

fn small(value: u32, what: &str) -> Result<u16, String> {
    u16::try_from(value).map_err(|_| format!("{what} {value} is out of range"))
}

fn peer_to_pb(member: &MemberId, peer: &Peer) -> pb::Peer {
    pb::Peer {
        member: member.to_string(),
        uid: peer.uid.to_string(),
        addresses: peer.addresses.iter().map(ToString::to_string).collect(),
        port: peer.port.into(),
        server_name: peer.server_name.clone(),
        ca_pem: peer.ca_pem.clone(),
        readiness: peer.readiness.0.clone(),
    }
}

fn peer_from_pb(peer: pb::Peer) -> Result<(MemberId, Peer), String> {
    let member = MemberId::new(&peer.member).map_err(|e| e.to_string())?;
    let peer = Peer {
        uid: ClusterUid::new(&peer.uid).map_err(|e| e.to_string())?,
        addresses: peer.addresses.iter().map(|text| Address::of(text)).collect(),
        port: small(peer.port, "port")?,
        server_name: peer.server_name,
        ca_pem: peer.ca_pem,
        readiness: Capability(peer.readiness),
    };
    Ok((member, peer))
}

fn ca_to_pb(member: &MemberId, ca: &CrossingCa) -> pb::CrossingCa {
    pb::CrossingCa {
        member: member.to_string(),
        uid: ca.uid.to_string(),
        membership: ca.membership.clone(),
        ca_pem: ca.ca_pem.clone(),
        endorsements: ca.endorsements.clone(),
    }
}

fn ca_from_pb(ca: pb::CrossingCa) -> Result<(MemberId, CrossingCa), String> {
    let member = MemberId::new(&ca.member).map_err(|e| e.to_string())?;
    let uid = ClusterUid::new(&ca.uid).map_err(|e| e.to_string())?;
    let endorsements = ca.endorsements.into_iter().take(ENDORSEMENTS_MAX).collect();
    Ok((member, CrossingCa { uid, membership: ca.membership, ca_pem: ca.ca_pem, endorsements }))
}
