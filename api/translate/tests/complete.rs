//! That nothing is left without a golden: each field of the Gateway API, each field and value of our own
//! kinds, each field that ingest reads, each reason, each precedence of policies. What needs none stands here
//! with its reason, and a reason that is no longer true fails, too.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

use fairlead_model::Reason;
use serde_json::Value;

const FIELDS: &str = include_str!("gateway-api/fields.txt");
const REASONS: &str = include_str!("gateway-api/reasons.txt");

/// Places whose content in a member is not what was written, and why: kind (`*`: of each), beginning.
const REWRITTEN: &[(&str, &str, &str)] = &[
    ("*", "spec.parentRefs[].name", "the member's Gateway"),
    ("*", "spec.useDefaultGateways", "would attach to Gateways of the member's own"),
    ("Gateway", "spec.gatewayClassName", "the member's class"),
    ("Gateway", "spec.allowedListeners", "settled in the hub"),
    ("Gateway", "spec.defaultScope", "would take routes of the member's own"),
    ("Gateway", "spec.tls.backend.clientCertificateRef.name", "the door's certificate"),
    ("Gateway", "spec.tls.backend.clientCertificateRef.namespace", "the door's certificate"),
];

/// Fields that Fairlead neither reads nor writes, and why.
const UNUSED: &[(&str, &str, &str)] = &[
    ("GatewayClass", "spec.description", "for people"),
    ("BackendTLSPolicy", "spec.options", "of implementations"),
    ("BackendTLSPolicy", "spec.targetRefs[].sectionName", "every port of a peer is a door"),
    (
        "BackendTLSPolicy",
        "spec.validation.subjectAltNames",
        "the server name is in the certificate",
    ),
    (
        "BackendTLSPolicy",
        "spec.validation.wellKnownCACertificates",
        "a door's CA is its member's own",
    ),
];

/// Keys that ingest reads and that no object can show in a golden, and why.
const UNSEEN: &[(&str, &str)] = &[];

/// Our reasons that no golden shows, and the test that does: file and function.
const SHOWN_ELSEWHERE: &[(Reason, &str, &str)] = &[
    (
        Reason::RollingOut,
        "hub/planner/src/rollout_test.rs",
        "a_large_change_is_tried_at_one_member_and_goes_on_when_it_goes_well",
    ),
    (
        Reason::RolloutStopped,
        "hub/planner/src/rollout_test.rs",
        "what_stops_a_change_is_said_and_nobody_keeps_it",
    ),
    (
        Reason::UntrustedCa,
        "member-agent/src/pins_test.rs",
        "the_first_ca_is_believed_and_another_is_not",
    ),
    (
        Reason::CertificateExpired,
        "hub/tests/agent_port/identity.rs",
        "an_expired_certificate_renews_with_its_own_key_and_does_nothing_else",
    ),
    (
        Reason::NoSnapshot,
        "hub/src/status/desired_test.rs",
        "a_lost_stream_and_one_that_never_was_are_told_apart",
    ),
    (
        Reason::WeakDoor,
        "hub/planner/tests/plans.rs",
        "a_port_of_a_door_belongs_to_one_service_and_needs_consent",
    ),
    (
        Reason::DoorTimedOut,
        "member-agent/core/src/overlay_tests.rs",
        "a_peer_that_cannot_be_reached_gets_nothing_and_the_others_all",
    ),
    (Reason::Shadowed, "e2e/src/scenario/routes/surprise.rs", "shadowed"),
    (
        Reason::NameConflict,
        "hub/src/status/desired_test.rs",
        "plan_applied_says_how_far_the_member_is",
    ),
    (
        Reason::FieldUnknown,
        "member-agent/src/apply_test.rs",
        "a_rule_with_a_field_that_the_cluster_does_not_know_is_left_out",
    ),
    (
        Reason::Frozen,
        "member-agent/core/src/diff_tests.rs",
        "what_no_plan_names_is_pruned_if_it_is_ours_and_its_kind_is_synced",
    ),
    (
        Reason::ApplyRefused,
        "member-agent/src/apply_test.rs",
        "what_the_api_server_finds_invalid_is_told_in_its_words",
    ),
    (
        Reason::Forbidden,
        "member-agent/src/apply_test.rs",
        "a_write_that_is_refused_is_told_and_tried_again_and_stops_nothing_else",
    ),
    (
        Reason::Withheld,
        "member-agent/core/src/diff_tests.rs",
        "door_routes_wait_for_the_knock_and_go_when_a_stranger_was_let_in",
    ),
    (
        Reason::NotOurKind,
        "member-agent/core/src/own_tests.rs",
        "secrets_and_everything_else_are_not_written",
    ),
    (
        Reason::UntestedVersion,
        "cli/src/install/gateway_api.rs",
        "the_tried_version_passes_and_others_warn",
    ),
    (
        Reason::WaitingForMembers,
        "hub/src/conductor_test.rs",
        "nothing_is_planned_before_all_kinds_are_read",
    ),
    (Reason::PolicyNotSynced, "hub/core/src/hold.rs", "each_obstacle_holds_with_its_reason"),
    (Reason::StoreUnavailable, "hub/core/src/hold.rs", "each_obstacle_holds_with_its_reason"),
    (Reason::OldNumber, "hub/core/src/intake.rs", "numbers_of_a_session_rise"),
    (
        Reason::CheckFailed,
        "hub/planner/src/check.rs",
        "a_finding_keeps_the_decision_before_of_that_route_only",
    ),
    (Reason::NotVisible, "hub/core/src/visible.rs", "only_what_lasts_is_told"),
    (Reason::ResolverFailed, "hub/core/src/visible.rs", "only_what_lasts_is_told"),
    (Reason::TokenUnknown, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (Reason::TokenUsed, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (Reason::TokenExpired, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (Reason::NameTaken, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (Reason::ClusterJoinedAlready, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (Reason::WrongIdentity, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (
        Reason::MemberRemoved,
        "hub/src/fleet_test.rs",
        "a_removed_member_loses_its_stream_and_leaves_nothing",
    ),
    (Reason::ClockSkew, "hub/core/src/enroll.rs", "each_refusal_has_its_reason"),
    (
        Reason::VersionUnsupported,
        "hub/core/src/session_test.rs",
        "a_hello_is_checked_against_the_certificate_and_the_protocol",
    ),
];

/// What a TrafficPolicy can act on, the weakest first.
const LEVELS: [&str; 6] = ["gateway", "set", "listener", "service", "route", "rule"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

type Paths = BTreeMap<String, BTreeSet<String>>;

/// Every path of a value and every path with its text; entries of lists have no numbers.
fn paths(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    out.insert(path.to_owned());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| paths(value, &format!("{path}.{key}"), out));
        }
        Value::Array(list) => list.iter().for_each(|v| paths(v, &format!("{path}[]"), out)),
        Value::String(text) => drop(out.insert(format!("{path}={text}"))),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Paths of the specs of every object in the inputs of some folders, by kind.
fn inputs(folders: &[&str]) -> Paths {
    let mut all = Paths::new();
    for (_, golden) in folders.iter().flat_map(|folder| golden::files(folder)) {
        for object in golden["input"]["objects"].as_array().into_iter().flatten() {
            let kind = object["kind"].as_str().unwrap().to_owned();
            paths(&object["spec"], "spec", all.entry(kind).or_default());
        }
    }
    all
}

/// Paths that stand in an object of a golden and in what the member gets of it, unchanged.
fn carried() -> Paths {
    let mut all = Paths::new();
    for (_, golden) in golden::files("carried") {
        for object in golden["input"]["objects"].as_array().unwrap() {
            let [kind, name] = ["/kind", "/metadata/name"]
                .map(|at| object.pointer(at).and_then(Value::as_str).unwrap());
            let namespace = object["metadata"]["namespace"].as_str().unwrap();
            let shown = &golden["output"][format!("{kind}/{namespace}/{name}")];
            let rewritten: BTreeSet<&str> = shown["rewritten"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
            paths(&object["spec"], "spec", &mut before);
            paths(&shown["spec"], "spec", &mut after);
            let same =
                before.intersection(&after).filter(|path| !rewritten.contains(path.as_str()));
            all.entry(kind.to_owned()).or_default().extend(same.cloned());
        }
    }
    all
}

/// Paths of everything of a kind that goldens of plans end in.
fn rendered() -> Paths {
    let mut all = Paths::new();
    for (_, golden) in golden::files("render") {
        for object in golden["output"]["objects"].as_array().into_iter().flatten() {
            let kind = object["kind"].as_str().unwrap().to_owned();
            paths(&object["spec"], "spec", all.entry(kind).or_default());
        }
    }
    all
}

fn fields() -> impl Iterator<Item = (&'static str, &'static str)> {
    FIELDS.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once(' ').unwrap())
}

/// The place in a list of exceptions that speaks of a field.
fn exception(list: &[(&str, &str, &str)], kind: &str, path: &str) -> Option<usize> {
    list.iter().position(|(of, start, why)| {
        assert!(!why.is_empty());
        let rest = path.strip_prefix(start);
        (*of == "*" || *of == kind)
            && rest.is_some_and(|r| r.is_empty() || r.starts_with(['.', '[']))
    })
}

#[test]
fn every_field_of_the_gateway_api_has_a_golden() {
    let (carried, rendered) = (carried(), rendered());
    let read = inputs(&["hub", "carried"]);
    let (mut missing, mut rewritten, mut unused) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let has = |paths: &Paths, kind: &str, path: &str| {
        paths.get(kind).is_some_and(|paths| paths.contains(path))
    };
    for (kind, path) in fields() {
        if has(&carried, kind, path) {
            let stale = exception(REWRITTEN, kind, path);
            assert!(stale.is_none(), "{kind} {path} is carried");
            continue;
        }
        let shown = match kind {
            "BackendTLSPolicy" => has(&rendered, kind, path),
            _ => has(&read, kind, path),
        };
        let may_change =
            matches!(kind, "BackendTLSPolicy" | "GatewayClass" | "ListenerSet" | "ReferenceGrant");
        match (shown, exception(REWRITTEN, kind, path), exception(UNUSED, kind, path)) {
            (true, Some(at), _) => drop(rewritten.insert(at)),
            (true, None, None) if may_change => {}
            (false, _, Some(at)) => drop(unused.insert(at)),
            _ => missing.push(format!("{kind} {path}")),
        }
    }
    assert!(missing.is_empty(), "no golden in `carried` shows these:\n{}", missing.join("\n"));
    assert_eq!(
        (rewritten.len(), unused.len()),
        (REWRITTEN.len(), UNUSED.len()),
        "stale exceptions"
    );
}

/// Leaves of a schema, and the values of those that are chosen from a list.
fn leaves(schema: &Value, path: &str, out: &mut Vec<String>) {
    if let Some(fields) = schema["properties"].as_object() {
        fields.iter().for_each(|(key, schema)| leaves(schema, &format!("{path}.{key}"), out));
    } else if schema["type"] == "array" {
        leaves(&schema["items"], &format!("{path}[]"), out);
    } else if let Some(values) = schema["enum"].as_array() {
        out.extend(values.iter().filter_map(Value::as_str).map(|value| format!("{path}={value}")));
    } else {
        out.push(path.to_owned());
    }
}

#[test]
fn every_field_and_value_of_our_own_kinds_has_a_golden() {
    let read = inputs(&["hub"]);
    let mut missing = Vec::new();
    for crd in fairlead_crds::crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let mut wanted = Vec::new();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        leaves(schema, "spec", &mut wanted);
        assert!(wanted.len() > 5, "{kind}: {wanted:?}");
        wanted.retain(|path| !read.get(kind).is_some_and(|paths| paths.contains(path)));
        missing.extend(wanted.into_iter().map(|path| format!("{kind} {path}")));
    }
    assert!(missing.is_empty(), "no golden in `hub` has these:\n{}", missing.join("\n"));
}

/// Rust sources of a folder, without their tests.
fn sources(folder: &str) -> String {
    let folder = root().join("api/translate/src").join(folder);
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
    files.iter().map(|path| read(path).split("#[cfg(test)]").next().unwrap().to_owned()).collect()
}

/// Everything within the parentheses that are open at the start.
fn arguments(text: &str) -> &str {
    let mut depth = 1;
    let end = text.char_indices().find(|(_, c)| {
        depth += i32::from(*c == '(') - i32::from(*c == ')');
        depth == 0
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// Values of the constants of keys.
fn constants() -> BTreeMap<String, String> {
    let source = fs::read_to_string(root().join("api/crds/src/keys.rs")).unwrap();
    let constant = |line: &str| {
        let (name, value) = line.strip_prefix("pub const ")?.split_once(": &str = \"")?;
        Some((name.to_owned(), value.strip_suffix("\";")?.to_owned()))
    };
    source.replace("=\n    \"", "= \"").lines().filter_map(constant).collect()
}

/// Keys of objects that sources read by name.
fn keys_read(source: &str) -> BTreeSet<String> {
    const CALLS: [&str; 9] = [
        "text(",
        "texts(",
        "field(",
        "list(",
        "port(",
        "get(",
        "pointer(",
        "annotation(",
        "label(",
    ];
    let constants = constants();
    let mut keys = BTreeSet::new();
    for call in CALLS {
        for (at, _) in source.match_indices(call) {
            let arguments = arguments(&source[at + call.len()..]);
            let literals = arguments.split('"').skip(1).step_by(2).filter(|literal| {
                literal.chars().all(|c| c.is_ascii_alphabetic() || c == '/') && !literal.is_empty()
            });
            keys.extend(literals.flat_map(|text| text.split('/')).map(str::to_owned));
            if matches!(call, "annotation(" | "label(") {
                let named = arguments.split("keys::").skip(1);
                let name = |text: &str| {
                    text.split(|c: char| !(c.is_ascii_uppercase() || c == '_'))
                        .next()
                        .unwrap()
                        .to_owned()
                };
                keys.extend(named.map(name).filter_map(|name| constants.get(&name).cloned()));
            }
        }
    }
    keys.remove("");
    keys
}

fn keys_of(value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            out.extend(map.keys().cloned());
            map.values().for_each(|value| keys_of(value, out));
        }
        Value::Array(list) => list.iter().for_each(|value| keys_of(value, out)),
        _ => {}
    }
}

#[test]
fn every_key_that_ingest_reads_is_in_a_golden() {
    let mut unseen: BTreeSet<&str> = UNSEEN.iter().map(|(key, _)| *key).collect();
    for (source, folders) in
        [("ingest/hub", &["hub", "carried"][..]), ("ingest/member", &["member"][..])]
    {
        let read = keys_read(&sources(source));
        assert!(read.len() > 25, "{source}: {read:?}");
        let mut there = BTreeSet::new();
        for (_, golden) in folders.iter().flat_map(|folder| golden::files(folder)) {
            keys_of(&golden["input"]["objects"], &mut there);
        }
        let missing: Vec<&String> = read
            .iter()
            .filter(|key| !there.contains(*key) && !unseen.remove(key.as_str()))
            .collect();
        assert!(missing.is_empty(), "{source} reads what no golden has: {missing:?}");
    }
    assert!(unseen.is_empty(), "not read any more, or in a golden: {unseen:?}");
}

/// Conditions that goldens say: object, type and reason.
fn said() -> BTreeSet<String> {
    let mut said = BTreeSet::new();
    let mut collect = |object: &str, status: &Value| {
        for condition in status["conditions"].as_array().into_iter().flatten() {
            let words: Vec<&str> = condition.as_str().unwrap().split(' ').collect();
            said.insert(format!("{object} {} {}", words[0], words[2]));
        }
    };
    for (_, golden) in golden::files("hub") {
        let output = &golden["output"];
        let of = |part: &str| output[part].as_object().cloned().unwrap_or_default();
        of("classes").values().for_each(|status| collect("GatewayClass", status));
        for (part, object, listener) in
            [("gateways", "Gateway", "Listener"), ("listener_sets", "ListenerSet", "ListenerEntry")]
        {
            for status in of(part).values() {
                collect(object, status);
                let listeners = status["listeners"].as_array().into_iter().flatten();
                listeners.for_each(|status| collect(listener, status));
            }
        }
        for route in of("routes").values() {
            let parents = route["status"]["parents"].as_array().into_iter().flatten();
            parents.for_each(|parent| collect("Route", parent));
        }
        for policy in of("policies").values() {
            let ancestors = policy["ancestors"].as_array().into_iter().flatten();
            ancestors.for_each(|ancestor| collect("Policy", ancestor));
        }
    }
    said
}

#[test]
fn every_reason_of_the_gateway_api_is_said_or_has_a_reason_not_to_be() {
    let said = said();
    let mut wrong = Vec::new();
    for line in REASONS.lines().filter(|line| !line.starts_with('#')) {
        let (reason, why) = line.split_once(": ").unwrap_or((line, ""));
        assert_eq!(reason.split(' ').count(), 3, "{line}");
        match (said.contains(reason), why.is_empty()) {
            (false, true) => wrong.push(format!("no golden says {reason}")),
            (true, false) => wrong.push(format!("{reason} is said: {why}")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What goldens of a folder end in, as text.
fn outputs(folder: &Path, mark: &str) -> String {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let text = |path: PathBuf| fs::read_to_string(path).unwrap();
    files.map(text).filter_map(|text| Some(text.split_once(mark)?.1.to_owned())).collect()
}

#[test]
fn every_reason_of_ours_is_in_a_golden_or_has_a_test_elsewhere() {
    let goldens = root().join("api/translate/tests/goldens");
    let mut text = outputs(&root().join("hub/planner/tests/goldens"), "\nexpect:\n");
    for folder in fs::read_dir(goldens).unwrap() {
        text.push_str(&outputs(&folder.unwrap().path(), "\noutput:\n"));
    }
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let mut wrong = Vec::new();
    for reason in Reason::ALL {
        let elsewhere = SHOWN_ELSEWHERE.iter().find(|(of, _, _)| of == reason);
        match (words.contains(reason.as_str()), elsewhere) {
            (false, None) => wrong.push(format!("{reason} is nowhere")),
            (true, Some(_)) => wrong.push(format!("{reason} is in a golden")),
            (true, None) => {}
            (false, Some((_, file, test))) => {
                let source = fs::read_to_string(root().join(file)).unwrap_or_default();
                let body = source.split(&format!("fn {test}(")).nth(1).unwrap_or_default();
                let body = body.split("\n    }\n").next().unwrap();
                let body = body.split("\n}\n").next().unwrap();
                if !body.contains(reason.as_str()) {
                    wrong.push(format!("{reason}: {file} has no test {test} that names it"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn hub_golden(name: &str) -> Value {
    let path = root().join(format!("api/translate/tests/goldens/hub/{name}.yaml"));
    golden::yaml(&fs::read_to_string(path).unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// The policies of a golden that are accepted, and the one that acts on the first rule of its route.
fn acting(golden: &Value) -> (BTreeSet<String>, String) {
    let short = |name: &str| name.split('/').next_back().unwrap().to_owned();
    let is_accepted = |policy: &Value| {
        policy
            .pointer("/ancestors/0/conditions/0")
            .unwrap()
            .as_str()
            .unwrap()
            .starts_with("Accepted True")
    };
    let policies = golden["output"]["policies"].as_object().unwrap();
    let accepted = policies.iter().filter(|(_, p)| is_accepted(p)).map(|(name, _)| short(name));
    let route = golden["output"]["routes"].as_object().unwrap().values().next().unwrap();
    let acts = route.pointer("/model/rules/0/policy").and_then(Value::as_str).unwrap();
    (accepted.collect(), short(acts))
}

#[test]
fn every_pair_of_targets_has_a_golden_of_its_precedence() {
    for (at, strong) in LEVELS.iter().enumerate() {
        for weak in &LEVELS[..at] {
            let name = format!("precedence_{strong}_over_{weak}");
            let want = [format!("of-{strong}"), format!("of-{weak}")];
            let (accepted, acts) = acting(&hub_golden(&name));
            assert_eq!((accepted, acts), (want.clone().into(), want[0].clone()), "{name}");
        }
    }
}

#[test]
fn every_target_has_goldens_of_two_policies_for_it() {
    for level in LEVELS {
        for (why, winner) in [("age", "b-older"), ("name", "a-first")] {
            let name = format!("conflict_{level}_by_{why}");
            let golden = hub_golden(&name);
            let (accepted, acts) = acting(&golden);
            assert_eq!((accepted, &*acts), ([winner.to_owned()].into(), winner), "{name}");
            let loser = golden["output"]["policies"].as_object().unwrap();
            let loser = loser.values().find(|p| !p.to_string().contains("Accepted True")).unwrap();
            assert!(loser.to_string().contains("Accepted False Conflicted"), "{name}");
        }
    }
}
