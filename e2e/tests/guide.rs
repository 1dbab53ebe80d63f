//! The guide's promises: each feature of the Gateway API is in docs/guide/routes.md, and each test that
//! it names as a proof exists.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every name of `pkg/features` of the Gateway API that the worlds run (e2e/tools/gateway-api), those
/// of meshes left out.
const FEATURES: &[&str] = &[
    "BackendTLSPolicy",
    "BackendTLSPolicySANValidation",
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "Gateway",
    "GatewayAddressEmpty",
    "GatewayFrontendClientCertificateValidation",
    "GatewayFrontendClientCertificateValidationInsecureFallback",
    "GatewayHTTPListenerIsolation",
    "GatewayInfrastructurePropagation",
    "GatewayPort8080",
    "GatewayStaticAddresses",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteDestinationPortMatching",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetry",
    "HTTPRouteRetryBackendTimeout",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "ListenerSet",
    "ReferenceGrant",
    "TCPRoute",
    "TLSRoute",
    "TLSRouteModeMixed",
    "TLSRouteModeTerminate",
    "UDPRoute",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// A row of a table: its cells.
fn rows(text: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    text.lines().filter(|line| line.starts_with('|')).map(cells).collect()
}

/// The table of features: name, whether it is published, proof.
fn features() -> Vec<Vec<String>> {
    let guide = read("docs/guide/routes.md");
    let (_, rest) = guide.split_once("## By the names of the Gateway API").unwrap();
    rows(rest.split("\n## ").next().unwrap()).into_iter().skip(2).collect()
}

fn names(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_feature_of_the_gateway_api_is_in_the_guide() {
    let told: BTreeSet<String> = features().iter().flat_map(|row| names(&row[0])).collect();
    let missing: Vec<_> = FEATURES.iter().filter(|name| !told.contains(**name)).collect();
    assert!(missing.is_empty(), "docs/guide/routes.md says nothing of {missing:?}");
    let unknown: Vec<_> = told.iter().filter(|name| !FEATURES.contains(&name.as_str())).collect();
    assert!(unknown.is_empty(), "the Gateway API has no {unknown:?}");
}

#[test]
fn what_the_class_publishes_is_what_the_guide_says() {
    let source = read("api/translate/src/status/gateway.rs");
    let (_, list) = source.split_once("const FEATURES").unwrap();
    let list = list.split("];").next().unwrap();
    let published: BTreeSet<String> =
        list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let yes = features().into_iter().filter(|row| row[1] == "yes");
    let promised: BTreeSet<String> = yes.flat_map(|row| names(&row[0])).collect();
    assert_eq!(published, promised);
}

/// `hub/section_and_port` is a golden, `render/*` some of them; `planner/drained` is one of the planner's.
fn is_golden(name: &str) -> bool {
    name.contains('/')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_*/".contains(c))
}

fn golden_exists(name: &str) -> bool {
    let (dir, file) = name.split_once('/').unwrap_or(("", name));
    let dir = match dir {
        "planner" => root().join("hub/planner/tests/goldens"),
        dir => root().join("api/translate/tests/goldens").join(dir),
    };
    match file {
        "*" => dir.is_dir(),
        file => dir.join(format!("{file}.yaml")).is_file(),
    }
}

/// The source of a scenario, with its parts.
fn scenario(name: &str) -> Option<String> {
    let folder = root().join("e2e/src/scenario");
    let mut text = fs::read_to_string(folder.join(format!("{name}.rs"))).ok()?;
    let parts = fs::read_dir(folder.join(name)).into_iter().flatten();
    for part in parts {
        text.push_str(&fs::read_to_string(part.unwrap().path()).unwrap());
    }
    Some(text)
}

fn is_id(word: &str) -> bool {
    let number = word.strip_prefix(|first: char| first.is_ascii_lowercase());
    number.is_some_and(|number| !number.is_empty() && number.parse::<u8>().is_ok())
}

/// Proofs that a cell names and that do not exist. `e2e` means scenario `routes` until another one is
/// named.
fn absent(cell: &str) -> Vec<String> {
    let mut absent: Vec<String> =
        names(cell).into_iter().filter(|name| is_golden(name) && !golden_exists(name)).collect();
    let mut of = "routes".to_owned();
    for word in cell.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '/') {
        if word == "e2e" {
            "routes".clone_into(&mut of);
        } else if is_id(word) {
            let there = scenario(&of).is_some_and(|text| text.contains(&format!("\"{word}\"")));
            if !there {
                absent.push(format!("{of} {word}"));
            }
        } else if scenario(word).is_some() {
            word.clone_into(&mut of);
        }
    }
    absent
}

#[test]
fn every_proof_that_the_guide_names_exists() {
    let guide = read("docs/guide/routes.md");
    let proofs = rows(&guide).into_iter().filter(|row| row.len() > 2);
    let texts = proofs.flat_map(|row| row.into_iter().skip(1));
    let absent: Vec<String> = texts.flat_map(|cell| absent(&cell)).collect();
    assert!(absent.is_empty(), "docs/guide/routes.md names what does not exist: {absent:?}");
}

#[test]
fn what_does_not_exist_is_found() {
    assert_eq!(absent("e2e m1; golden `hub/section_and_port`; policy q3"), [""; 0]);
    let wrong = absent("e2e m1, z9; golden `hub/nowhere`, `nowhere/*`; policy m1");
    assert_eq!(wrong, ["hub/nowhere", "nowhere/*", "routes z9", "policy m1"]);
}
