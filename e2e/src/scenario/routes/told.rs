//! What the hub says of routes: by its statuses and by its commands.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use fairlead_crds::keys;
use fairlead_model::Reason;
use serde_json::{Value, json};

use super::{ENTRY, GATEWAY_API, NAMESPACE, Stage, TARGET};
use crate::{
    object::ObjectKey,
    report::{Facts, Finding, figures},
    wait::{self, Look},
};

pub(super) async fn play(stage: &Stage<'_>, facts: &mut Facts) {
    facts.look("t1", "a GRPCRoute has a status by the spec", grpc_status(stage)).await;
    facts.look("t2", "get and explain tell of a GRPCRoute", grpc_explained(stage)).await;
    facts
        .look(
            "t3",
            "a mirror that nobody can take is left out and said, the rule serves on",
            mirror(stage),
        )
        .await;
    facts.look("t4", "a withdrawn ReferenceGrant is said and obeyed", grant(stage)).await;
    facts.look("t5", "of two routes with one match the older answers", older(stage)).await;
    facts
        .look(
            "t6",
            "the API server takes what `migrate ingress` makes of 24 Ingresses",
            migrated(stage),
        )
        .await;
    let name = "every field of this world's Gateway API is in the list that goldens are asked for";
    facts.look("t12", name, fields(stage)).await;
}

/// Fields that `api/translate/tests/complete.rs` wants a golden of.
const FIELDS: &str = include_str!("../../../../api/translate/tests/gateway-api/fields.txt");

async fn fields(stage: &Stage<'_>) -> Result<Finding> {
    let told: BTreeSet<&str> = FIELDS.lines().filter(|line| !line.starts_with('#')).collect();
    let kinds: BTreeSet<&str> = told.iter().filter_map(|line| line.split(' ').next()).collect();
    let mut there = BTreeSet::new();
    for kind in kinds {
        let plural = kind.to_lowercase().replace("policy", "policie").replace("class", "classe");
        let name = format!("{plural}s.{}", keys::GATEWAY_GROUP);
        let key = ObjectKey::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", &name);
        let crd = stage.fleet.hub().objects().get(&key).await?.context(name)?;
        let versions = crd["spec"]["versions"].as_array().context("no versions")?;
        let served = versions.iter().find(|version| version["served"] == true);
        let schema = &served.context("none is served")?["schema"]["openAPIV3Schema"];
        leaves(&schema["properties"]["spec"], &format!("{kind} spec"), &mut there);
    }
    let unknown: Vec<&String> = there.iter().filter(|f| !told.contains(f.as_str())).collect();
    let gone: Vec<&&str> = told.iter().filter(|field| !there.contains(**field)).collect();
    Ok(Finding::new(
        unknown.is_empty() && gone.is_empty(),
        figures([("fields", json!(there.len())), ("new", json!(unknown)), ("gone", json!(gone))]),
    ))
}

fn leaves(schema: &Value, path: &str, out: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(fields) => {
            fields.iter().for_each(|(key, schema)| leaves(schema, &format!("{path}.{key}"), out));
        }
        None if schema["type"] == "array" => leaves(&schema["items"], &format!("{path}[]"), out),
        None => drop(out.insert(path.to_owned())),
    }
}

fn conditions(status: &Value) -> String {
    let list = status["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
    let word = |condition: &Value| {
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        format!("{}={} {}", text("type"), text("status"), text("reason"))
    };
    list.iter().map(word).collect::<Vec<_>>().join(", ")
}

async fn grpc_status(stage: &Stage<'_>) -> Result<Finding> {
    let key = ObjectKey::new(GATEWAY_API, "GRPCRoute", NAMESPACE, "grpc");
    let wanted = ["Accepted=True", "ResolvedRefs=True", "MembersProgrammed=True"];
    let said = wait::until("the status of the GRPCRoute", super::LIMIT, || async {
        let object =
            stage.fleet.world().hub().objects().get(&key).await?.context("no GRPCRoute")?;
        let said = conditions(&object["status"]);
        let whole = wanted.iter().all(|word| said.contains(word));
        Ok(if whole { Look::Done(said) } else { Look::Not(said) })
    })
    .await?;
    Ok(Finding::new(true, figures([("said", json!(said))])))
}

async fn grpc_explained(stage: &Stage<'_>) -> Result<Finding> {
    let routes = stage.fleet.routes().await?;
    let route = routes.iter().find(|route| route.route.to_string() == "GRPCRoute/routes/grpc");
    let route = route.context("`fairlead get routes` does not list it")?;
    let accepted = route.entries.values().filter(|entry| entry.accepted == Some(true)).count();
    let explained = stage.fleet.explain("GRPCRoute/routes/grpc").await?;
    let rules = explained.entries.iter().find(|(member, _)| member.as_str() == ENTRY);
    let rules = &rules.context("no entry")?.1.rules;
    let served = |member: &str| {
        let shares = rules.iter().flat_map(|rule| &rule.backends).flat_map(|b| &b.members);
        shares.filter(|share| share.member.as_str() == member).all(|share| share.share > 0)
    };
    let holds = accepted == 2 && rules.len() == 5 && served(TARGET);
    Ok(Finding::new(holds, figures([("accepted", json!(accepted)), ("rules", json!(rules.len()))])))
}

/// A global route of this name alone, without a plain twin.
pub(super) async fn declare(stage: &Stage<'_>, name: &str, path: &str, rule: Value) -> Result<()> {
    let mut rule = rule;
    rule["matches"] = json!([{"path": {"type": "PathPrefix", "value": path}}]);
    let route = super::route("HTTPRoute", name, "http", &json!([rule]), super::Side::Fleet);
    stage.fleet.world().hub().objects().apply(&route).await.map(drop)
}

pub(super) async fn wait_answer(stage: &Stage<'_>, path: &str, status: u16) -> Result<String> {
    wait::until(&format!("{path} to be answered {status}"), super::LIMIT, || async {
        let host = format!("http.{}", super::Side::Fleet.domain());
        let seen = crate::fleet::shop::ask_host(stage.entry, &host, path).await?;
        let done = seen.status == status;
        let target = seen.target().to_owned();
        Ok(if done { Look::Done(target) } else { Look::Not(format!("it is {}", seen.status)) })
    })
    .await
}

async fn mirror(stage: &Stage<'_>) -> Result<Finding> {
    let filter =
        json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "nowhere"}}});
    let rule = json!({"filters": [filter], "backendRefs": [{"name": "echo"}]});
    declare(stage, "mirrored", "/mirrored", rule).await?;
    let target = wait_answer(stage, "/mirrored", 200).await?;
    let said = wait::until("a note about the mirror", super::LIMIT, || async {
        let routes = stage.fleet.routes().await?;
        let route = routes.iter().find(|route| &*route.route.name.name == "mirrored");
        let notes = &route.context("the hub does not list the route")?.notes;
        let note = notes.iter().find(|note| note.reason == Reason::BackendNotFound);
        Ok(match note {
            Some(note) => Look::Done(note.message.clone()),
            None => Look::Not(format!("notes are {notes:?}")),
        })
    })
    .await?;
    Ok(Finding::new(target == TARGET, figures([("said", json!(said))])))
}

/// A reference to a service of another namespace: refused, granted, withdrawn.
async fn grant(stage: &Stage<'_>) -> Result<Finding> {
    let hub = stage.fleet.world().hub().objects();
    let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", super::GATEWAY_NAMESPACE, "granted");
    let rules = json!([{
        "matches": [{"path": {"type": "PathPrefix", "value": "/granted"}}],
        "backendRefs": [{"name": "echo", "namespace": NAMESPACE}],
    }]);
    let mut route = super::route("HTTPRoute", "granted", "http", &rules, super::Side::Fleet);
    route["metadata"]["namespace"] = json!(super::GATEWAY_NAMESPACE);
    hub.apply(&route).await?;
    wait_answer(stage, "/granted", 500).await?;
    let grant = |group: &str, kind: &str| {
        json!({
            "apiVersion": GATEWAY_API, "kind": "ReferenceGrant",
            "metadata": {"name": "from-infra", "namespace": NAMESPACE},
            "spec": {
                "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": super::GATEWAY_NAMESPACE}],
                "to": [{"group": group, "kind": kind}],
            },
        })
    };
    // The hub's owner grants the name, the member's owner the service.
    hub.apply(&grant("multicluster.x-k8s.io", "ServiceImport")).await?;
    let member = stage.fleet.world().member(TARGET)?.objects();
    member.apply(&grant("", "Service")).await?;
    let target = wait_answer(stage, "/granted", 200).await?;
    let start = std::time::Instant::now();
    let withdrawn = ObjectKey::of(&grant("", "Service"))?;
    member.delete(&withdrawn).await?;
    wait_answer(stage, "/granted", 500).await?;
    let stopped = start.elapsed();
    let said = wait::until("ResolvedRefs to be RefNotPermitted", super::LIMIT, || async {
        hub.delete(&ObjectKey::of(&grant("multicluster.x-k8s.io", "ServiceImport"))?).await?;
        let object = hub.get(&key).await?.context("the route is gone")?;
        let said = conditions(&object["status"]);
        let whole = said.contains("ResolvedRefs=False RefNotPermitted");
        Ok(if whole { Look::Done(said) } else { Look::Not(said) })
    })
    .await?;
    hub.delete(&key).await?;
    Ok(Finding::new(
        target == TARGET,
        figures([("stopped_s", json!(crate::report::seconds(stopped))), ("said", json!(said))]),
    ))
}

/// Times of objects are whole seconds.
pub(super) async fn next_second() -> Result<()> {
    let declared = std::time::Instant::now();
    wait::until("the next second", super::LIMIT, || async {
        let passed = declared.elapsed() >= std::time::Duration::from_millis(1100);
        Ok(if passed { Look::Done(()) } else { Look::Not("not yet".into()) })
    })
    .await
}

/// The older route has the later name, so that a member's gateway alone would choose the other one.
async fn older(stage: &Stage<'_>) -> Result<Finding> {
    let rule = |service: &str| json!({"backendRefs": [{"name": service}]});
    declare(stage, "zz-older", "/twice", rule("echo-2")).await?;
    wait_answer(stage, "/twice", 200).await?;
    next_second().await?;
    declare(stage, "aa-newer", "/twice", rule("echo")).await?;
    let key = ObjectKey::new(GATEWAY_API, "HTTPRoute", NAMESPACE, "aa-newer");
    let hub = stage.fleet.world().hub().objects();
    let said = wait::until("the newer route to be Conflicted", super::LIMIT, || async {
        let object = hub.get(&key).await?.context("the route is gone")?;
        let said = conditions(&object["status"]);
        let fits = said.contains("Accepted=False Conflicted");
        Ok(if fits { Look::Done(said) } else { Look::Not(said) })
    })
    .await?;
    let host = format!("http.{}", super::Side::Fleet.domain());
    let mut services = BTreeSet::new();
    for _ in 0..20 {
        let seen = crate::fleet::shop::ask_host(stage.entry, &host, "/twice").await?;
        services.insert(seen.echo.map(|echo| echo.identity.service).unwrap_or_default());
    }
    let holds = services.len() == 1 && services.contains("echo-2");
    Ok(Finding::new(holds, figures([("served_by", json!(services)), ("said", json!(said))])))
}

async fn migrated(stage: &Stage<'_>) -> Result<Finding> {
    let folder = crate::path::repository()?.join("cli/tests/ingress");
    let line = format!("fairlead migrate ingress --from {} -o json", folder.display());
    let printed = stage.fleet.at_hub(&line).await?.expect_success()?;
    let made: Value = serde_json::from_str(&printed).context("the command's JSON")?;
    let hub = stage.fleet.world().hub().objects();
    let mut objects: Vec<Value> = made["hub"].as_array().cloned().unwrap_or_default();
    objects.extend(made["member"].as_array().cloned().unwrap_or_default());
    let mut namespaces: BTreeSet<String> = objects
        .iter()
        .filter_map(|object| object["metadata"]["namespace"].as_str().map(str::to_owned))
        .collect();
    namespaces.remove("default");
    namespaces.remove(super::GATEWAY_NAMESPACE);
    for namespace in &namespaces {
        hub.apply(&crate::object::namespace(namespace)).await?;
    }
    let mut refused = Vec::new();
    // Exports belong to members, whose definitions the hub has too.
    for object in &objects {
        if let Err(error) = hub.try_apply(object).await {
            refused.push(format!("{error:#}"));
        }
    }
    for namespace in &namespaces {
        hub.delete(&ObjectKey::new("v1", "Namespace", "", namespace)).await?;
    }
    let ingresses = made["ingresses"].as_u64().unwrap_or_default();
    let holds = refused.is_empty() && ingresses >= 20 && objects.len() > 40;
    Ok(Finding::new(
        holds,
        figures([
            ("ingresses", json!(ingresses)),
            ("objects", json!(objects.len())),
            ("findings", json!(made["findings"].as_array().map_or(0, Vec::len))),
            ("refused", json!(refused)),
        ]),
    ))
}
