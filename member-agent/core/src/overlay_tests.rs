//! The overlay's law: without faults the bundle, byte for byte; never an empty rule.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::live::LiveObject;
use crate::own;
use fairlead_model::NsName;
use fairlead_model::bundle::{BundleObject, Claim, Gate, Peer};
use fairlead_model::recipe::{
    Candidate, RECIPE_VERSION, RecipeBackend, RecipeTier, Split, Standing, WhenUnavailable,
};
use fairlead_model::snapshot::EndpointCounts;
use proptest::prelude::*;
use serde_json::json;
use std::sync::Arc;

const MEMBERS: [&str; 3] = ["east", "south", "west"];

fn member(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

fn peer() -> Peer {
    Peer {
        uid: fairlead_model::ClusterUid::new("u").unwrap(),
        addresses: BTreeSet::new(),
        port: 15443,
        server_name: "door".to_owned(),
        ca_pem: String::new(),
        readiness: fairlead_model::bundle::Capability::default(),
    }
}

/// A rule of one service served by members with these ready counts; `west` is ourselves.
fn recipe(ready: &[(&str, u32)]) -> Recipe {
    let candidates = ready.iter().enumerate().map(|(slot, (name, ready))| Candidate {
        member: member(name),
        slot: u16::try_from(slot).unwrap(),
        ready: *ready,
        expected: 10,
        weight: 0,
        ramp_percent: 100,
        standing: Standing::Able,
    });
    let tier = RecipeTier {
        split: Split::Endpoints,
        healthy_percent: 70,
        endpoints_min: 1,
        candidates: candidates.collect(),
    };
    let serve = Serve::Members {
        service: NsName::new("shop", "cart"),
        port: 80,
        tiers: vec![tier],
        when_unavailable: WhenUnavailable::Redistribute,
    };
    let backends = vec![RecipeBackend { weight: 1, serve }];
    let mut recipe = Recipe { version: RECIPE_VERSION, backends, weights: vec![0; ready.len()] };
    recipe.weights = fairlead_weights::divide(&recipe, &Faults::default());
    recipe
}

fn route(weights: &[u32]) -> Json {
    let refs: Vec<Json> = weights
        .iter()
        .enumerate()
        .map(|(i, w)| json!({"name": format!("b{i}"), "weight": w}))
        .collect();
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "cart-global", "namespace": "shop",
            "labels": {own::MANAGED_BY: own::FAIRLEAD}},
        "spec": {"rules": [{"backendRefs": refs, "x": {"kept": true}}]}})
}

fn bundle(recipe: Recipe) -> Bundle {
    let content = route(&recipe.weights);
    let id = ObjectId::of(&content).unwrap();
    let object = BundleObject { content, gate: Gate::Open, claim: Claim::Whole };
    Bundle {
        objects: [(id.clone(), object)].into(),
        recipes: [(RuleId { object: id, rule: 0 }, recipe)].into(),
        peers: ["east", "south"].map(|name| (member(name), peer())).into(),
        ..Bundle::default()
    }
}

fn run(
    bundle: &Bundle,
    reaches: &[(&str, Reach)],
    live: &LiveObjects,
    suspicion: Suspicion,
) -> Overlay {
    let reaches = reaches.iter().map(|(name, reach)| (member(name), *reach)).collect();
    overlay(&OverlayInput { bundle, reaches: &reaches, suspicion, live })
}

fn weights(overlay: &Overlay) -> Vec<u32> {
    let content = overlay.contents.values().next().unwrap();
    refs_of(content, 0).unwrap().iter().map(weight_of).collect()
}

const UP: [(&str, Reach); 2] = [("east", Reach::Reachable), ("south", Reach::Reachable)];
const EAST_OUT: [(&str, Reach); 2] = [("east", Reach::TimedOut), ("south", Reach::Reachable)];

#[test]
fn without_faults_the_overlay_changes_nothing() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    let got = run(&bundle, &UP, &LiveObjects::new(), Suspicion::None);
    assert_eq!(got, Overlay::default());
}

#[test]
fn a_peer_that_cannot_be_reached_gets_nothing_and_the_others_all() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    let got = run(&bundle, &EAST_OUT, &LiveObjects::new(), Suspicion::None);
    assert_eq!(weights(&got), [0, 5000, 5000]);
    assert_eq!(got.report.out, [(member("east"), Reason::DoorTimedOut)].into());
    assert_eq!(got.report.rules, 1);
    let content = got.contents.values().next().unwrap();
    assert_eq!(content["spec"]["rules"][0]["x"], json!({"kept": true}), "only weights change");
}

#[test]
fn when_nobody_can_be_reached_the_plan_stands() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10)]));
    let all = [("east", Reach::TimedOut), ("south", Reach::Refused)];
    let got = run(&bundle, &all, &LiveObjects::new(), Suspicion::None);
    assert!(got.contents.is_empty());
    assert_eq!((got.report.out.len(), got.report.rules), (2, 0));
}

fn live(weights: &[u32]) -> LiveObjects {
    let content = route(weights);
    let id = ObjectId::of(&content).unwrap();
    let live =
        LiveObject { uid: "u".to_owned(), resource_version: "1".to_owned(), content, owned: None };
    [(id, Arc::new(live))].into()
}

#[test]
fn after_a_restart_live_weights_stand_until_every_peer_has_a_verdict() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    let before = live(&[0, 5000, 5000]);
    let half = [("south", Reach::Reachable)];
    let got = run(&bundle, &half, &before, Suspicion::None);
    assert_eq!(weights(&got), [0, 5000, 5000]);
    assert!(got.report.out.is_empty(), "no verdict, no claim");
    let got = run(&bundle, &UP, &before, Suspicion::None);
    assert_eq!(got.contents.len(), 0, "then the plan counts again");
}

#[test]
fn live_weights_of_other_backends_do_not_count() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    assert!(run(&bundle, &[], &live(&[1, 2]), Suspicion::None).contents.is_empty());
    let mut other = live(&[1, 2, 3]);
    let object = Arc::make_mut(other.values_mut().next().unwrap());
    object.content["spec"]["rules"][0]["backendRefs"][1]["name"] = json!("other");
    assert!(run(&bundle, &[], &other, Suspicion::None).contents.is_empty());
}

#[test]
fn an_agent_that_may_be_alone_leaves_what_is_live() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    let all = [("east", Reach::TimedOut), ("south", Reach::TimedOut)];
    let before = live(&bundle.recipes.values().next().unwrap().weights);
    let got = run(&bundle, &all, &before, Suspicion::Alone);
    assert_eq!(got, Overlay::default());
    let got = run(&bundle, &all, &before, Suspicion::None);
    assert_eq!(weights(&got), [0, 0, 10000]);
}

#[test]
fn a_recipe_that_does_not_fit_its_rule_is_left_alone() {
    let mut bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    let object = bundle.objects.values_mut().next().unwrap();
    object.content["spec"]["rules"][0]["backendRefs"].as_array_mut().unwrap().pop();
    assert!(run(&bundle, &EAST_OUT, &LiveObjects::new(), Suspicion::None).contents.is_empty());
    bundle.objects.clear();
    assert!(run(&bundle, &EAST_OUT, &LiveObjects::new(), Suspicion::None).contents.is_empty());
}

#[test]
fn a_service_with_nothing_ready_gets_nothing_wherever_it_is() {
    let bundle = bundle(recipe(&[("east", 10), ("south", 10), ("west", 10)]));
    let cart = NsName::new("shop", "cart");
    let none = EndpointCounts { ready: 0, total: 10 };
    let reaches = UP.iter().map(|(name, reach)| (member(name), *reach)).collect();
    let live = LiveObjects::new();
    let input = OverlayInput {
        bundle: &bundle,
        reaches: &reaches,
        suspicion: Suspicion::None,
        live: &live,
    };
    let with = |gone: &[(&str, &NsName)]| {
        let of =
            |(name, service): &(&str, &NsName)| (member(name), [((*service).clone(), none)].into());
        overlay_with(&input, &gone.iter().map(of).collect())
    };
    assert_eq!(weights(&with(&[("east", &cart)])), [0, 5000, 5000]);
    // West is the entry itself.
    assert_eq!(weights(&with(&[("east", &cart), ("west", &cart)])), [0, 10000, 0]);
    let other = NsName::new("shop", "other");
    assert!(with(&[("east", &other)]).contents.is_empty());
    let all = [("east", &cart), ("south", &cart), ("west", &cart)];
    assert!(with(&all).contents.is_empty(), "when nobody can serve the plan stands");
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    proptest::collection::vec(0u32..12, 1..=3).prop_map(|ready| {
        let named: Vec<_> = MEMBERS.into_iter().zip(ready).collect();
        recipe(&named)
    })
}

fn any_reach() -> impl Strategy<Value = Reach> {
    prop_oneof![
        Just(Reach::Unknown),
        Just(Reach::Reachable),
        Just(Reach::Refused),
        Just(Reach::TimedOut)
    ]
}

proptest! {
    /// The law of design §5: no faults, no difference, whatever is live.
    #[test]
    fn without_faults_it_is_the_bundle_byte_for_byte(recipe in any_recipe(), was in any_recipe()) {
        let bundle = bundle(recipe);
        let got = run(&bundle, &UP, &live(&was.weights), Suspicion::None);
        prop_assert_eq!(got, Overlay::default());
    }

    #[test]
    fn a_rule_is_never_emptied_and_only_weights_change(
        recipe in any_recipe(), was in any_recipe(), east in any_reach(), south in any_reach(),
        alone in any::<bool>(),
    ) {
        let suspicion = if alone { Suspicion::Alone } else { Suspicion::None };
        let bundle = bundle(recipe);
        let reaches = [("east", east), ("south", south)];
        let got = run(&bundle, &reaches, &live(&was.weights), suspicion);
        for (id, content) in &got.contents {
            let refs = refs_of(content, 0).unwrap();
            prop_assert!(refs.iter().any(|r| weight_of(r) > 0));
            let mut same = content.clone();
            let planned = &bundle.objects[id].content;
            let weights: Vec<u32> = refs_of(planned, 0).unwrap().iter().map(weight_of).collect();
            set_weights(&mut same, 0, &weights);
            prop_assert_eq!(&same, planned);
        }
    }

    #[test]
    fn a_member_that_is_out_has_no_weight_unless_all_are(recipe in any_recipe()) {
        let bundle = bundle(recipe);
        let got = run(&bundle, &EAST_OUT, &LiveObjects::new(), Suspicion::None);
        if !got.contents.is_empty() {
            prop_assert_eq!(weights(&got)[0], 0);
        }
    }
}
