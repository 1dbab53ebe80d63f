//! `fairlead restore`: makes what a backup holds in a new hub cluster, before the hub is installed there.
//!
//! Creates and never overwrites: what is there stays, and is told. Keys of another hub are refused, since
//! with them no member would be recognised.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::{Json, ObjectId};
use jiff::Timestamp;
use serde_json::json;

use crate::args::Connection;
use crate::backup::{Backup, order};
use crate::cluster::{Cluster, Conflicts, Created, Kind, NameIn, secret};
use crate::failure::Failure;
use crate::install::{definition, step};
use crate::output;
use crate::progress::Steps;

/// Objects that are named when they could not be restored; the rest is counted.
const NAMED_MAX: usize = 5;

const AFTER_HELP: &str = "\
For a new hub cluster, before the hub is installed: makes the namespace, the definitions, the hub's Secrets
and all objects of the backup. What exists already stays as it is. Then install the hub with the address and
the values that it had: its members recognise it by its CA and come back by themselves, without a new join.
Definitions of the Gateway API and of policies that follow routes must be installed before.

EXAMPLES
  age -d -i key hub.age | fairlead restore - --context new-hub
  fairlead init --context new-hub --advertise https://hub.example.com:8443";

/// Arguments of `restore`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RestoreArgs {
    /// The backup; - is standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the CA, the keys and the history of a hub that was installed here meanwhile. Its members
    /// are lost.
    #[arg(long)]
    replace_secrets: bool,
}

/// Restores.
pub(crate) async fn run(connection: &Connection, args: &RestoreArgs) -> Result<(), Failure> {
    let backup = read(&args.file)?;
    let cluster = Cluster::open(connection).await?;
    restore(&cluster, &connection.namespace, backup, args.replace_secrets, Steps::for_stderr())
        .await
}

fn read(path: &PathBuf) -> Result<Backup, Failure> {
    let what = format!("cannot read {}", path.display());
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text).map(drop),
        false => std::fs::read_to_string(path).map(|read| text = read),
    };
    read.map_err(|e| Failure::failed(&what, e))?;
    Backup::read(&text).map_err(|e| Failure::failed(what, e))
}

async fn restore(
    cluster: &Cluster,
    home: &str,
    backup: Backup,
    replace: bool,
    steps: Steps,
) -> Result<(), Failure> {
    let header = &backup.header;
    steps.done(format!("backup of {}, {}", header.taken_at, count(backup.objects.len())));
    if header.namespace != home {
        let why = format!("the hub of the backup lived in {}", header.namespace);
        let what = format!("nothing is restored into namespace {home}");
        return Err(Failure::usage(what, why).next(format!("say --namespace {}", header.namespace)));
    }
    steps.done(format!("API server {} answers ({})", cluster.server(), cluster.version().await?));
    step::ensure_namespace(cluster, home, steps).await?;
    step::ensure_mcs(cluster, steps).await?;
    let own = definition::own();
    step::apply_all(cluster, "definitions", &own, Conflicts::TakeOver, steps).await?;
    for object in &own {
        definition::wait_established(cluster, definition::name(object)).await?;
    }
    let address = header.address.clone();
    let is_secret = |object: &Json| object["kind"] == "Secret";
    let (secrets, objects): (Vec<Json>, Vec<Json>) =
        backup.objects.into_iter().partition(is_secret);
    for object in &secrets {
        restore_secret(cluster, home, object, replace, steps).await?;
    }
    if secrets.is_empty() {
        steps.warn(
            "the backup is without the hub's Secrets: restore them before the hub is installed",
        );
    }
    restore_objects(cluster, objects, steps).await?;
    say_what_next(address.as_deref(), steps);
    Ok(())
}

async fn restore_secret(
    cluster: &Cluster,
    home: &str,
    object: &Json,
    replace: bool,
    steps: Steps,
) -> Result<(), Failure> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let is_history = name == keys::SECRET_HUB_HISTORY;
    if !is_history && ![keys::SECRET_HUB_CA, keys::SECRET_HUB_KEYS].contains(&name) {
        steps.warn(format!("Secret {name} is none of the hub's and is left out"));
        return Ok(());
    }
    let Some(there) = cluster.get(&secret(), home, name).await? else {
        cluster.create(object).await?;
        steps.done(format!("Secret {home}/{name} created"));
        return Ok(());
    };
    if there["data"] == object["data"] {
        steps.done(format!("Secret {home}/{name} is there"));
        return Ok(());
    }
    if is_history && !replace {
        steps.done(format!("Secret {home}/{name} stays as it is: a hub has written it here"));
        return Ok(());
    }
    if !replace {
        let why = "a hub with keys of its own was installed here";
        return Err(Failure::failed(format!("Secret {home}/{name} is not replaced"), why).next(
            "restore before the hub is installed; if no member of this new hub is to stay, go on with \
             --replace-secrets and restart the hub",
        ));
    }
    let mut data = json!({});
    // A merge patch removes what is named as null.
    for key in there["data"].as_object().into_iter().flatten().map(|(key, _)| key) {
        data[key] = Json::Null;
    }
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        data[key] = value.clone();
    }
    let at = NameIn { namespace: home, name };
    cluster.merge(&secret(), &at, &json!({"data": data})).await?;
    steps.warn(format!(
        "Secret {home}/{name} replaced: restart the hub with `kubectl -n {home} rollout restart \
         deployment/{}`",
        keys::HUB
    ));
    Ok(())
}

/// Makes all objects: namespaces first, then by waves.
async fn restore_objects(
    cluster: &Cluster,
    objects: Vec<Json>,
    steps: Steps,
) -> Result<(), Failure> {
    let mut kinds: BTreeMap<(String, String), Kind> = BTreeMap::new();
    for kind in cluster.namespaced_kinds().await? {
        kinds.insert((kind.group.clone(), kind.kind.clone()), kind);
    }
    let is_early =
        |object: &Json| object["kind"] == "Namespace" || object["kind"] == "GatewayClass";
    let (early, late): (Vec<Json>, Vec<Json>) = objects.into_iter().partition(is_early);
    let mut tally = Tally::default();
    for (nth, wave) in std::iter::once(early).chain(order::waves(late)).enumerate() {
        if nth > 1 {
            next_second().await;
        }
        for object in &wave {
            tally.add(object, create(cluster, &kinds, object).await);
        }
    }
    tally.tell(steps)
}

/// Ages are told by seconds.
async fn next_second() {
    let since = Timestamp::now().subsec_millisecond();
    let rest = u64::try_from(1_050 - i64::from(since)).unwrap_or(1_050);
    tokio::time::sleep(Duration::from_millis(rest)).await;
}

async fn create(
    cluster: &Cluster,
    kinds: &BTreeMap<(String, String), Kind>,
    object: &Json,
) -> Result<Created, Failure> {
    let id = ObjectId::of(object)
        .map_err(|e| Failure::failed("an object of the backup is left out", e))?;
    if id.namespace.is_empty() {
        return cluster.create(object).await;
    }
    let served = kinds.get(&(id.group.to_string(), id.kind.to_string()));
    let missing = || {
        Failure::failed(
            format!("cannot create {}", id.for_people()),
            "its kind is not installed here",
        )
    };
    // The version of the backup may be served no more: the preferred one takes the same fields.
    let kind = served.ok_or_else(missing)?;
    let mut object = object.clone();
    object["apiVersion"] = kind.api_version().into();
    cluster.create_in(kind, &object).await
}

/// What became of the objects.
#[derive(Default)]
struct Tally {
    created: usize,
    kept: usize,
    failed: Vec<String>,
}

impl Tally {
    fn add(&mut self, object: &Json, result: Result<Created, Failure>) {
        match result {
            Ok(Created::Now) => self.created += 1,
            Ok(Created::Before) => self.kept += 1,
            Err(failure) => {
                let id = ObjectId::of(object).map(|id| id.for_people()).unwrap_or_default();
                self.failed.push(format!("{id}: {}", failure.why()));
            }
        }
    }

    fn tell(self, steps: Steps) -> Result<(), Failure> {
        steps.done(format!("{} created, {} kept as they are", count(self.created), self.kept));
        if self.failed.is_empty() {
            return Ok(());
        }
        let more = self.failed.len().saturating_sub(NAMED_MAX);
        let mut why = self.failed.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
        if more > 0 {
            why.push_str(&format!("; and {more} more"));
        }
        let what = format!("{} not restored", count(self.failed.len()));
        Err(Failure::failed(what, why).next("mend that and run this again: what is there stays"))
    }
}

fn count(objects: usize) -> String {
    output::count(objects, "object")
}

fn say_what_next(address: Option<&str>, steps: Steps) {
    let address = address.unwrap_or("ADDRESS");
    steps.say(format!(
        "Now install the hub where its members look for it, with the flags or values that it had:\n  \
         fairlead init --advertise {address}"
    ));
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::command::backup::take;
    use crate::fake::Fake;

    const HOME: &str = "fairlead-system";

    fn secret_of(name: &str, value: &str) -> Json {
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": HOME},
            "type": "Opaque", "data": {"k": value}})
    }

    fn definitions() -> Vec<Json> {
        definition::own().into_iter().chain(definition::mcs()).collect()
    }

    fn mk_hub() -> Fake {
        let fake = Fake::with_gateway_api();
        definitions().into_iter().for_each(|definition| fake.put(definition));
        for object in [
            secret_of(keys::SECRET_HUB_CA, "Y2E="),
            secret_of(keys::SECRET_HUB_KEYS, "a2V5"),
            secret_of("somebody-elses", "eA=="),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"a": "b"}}}),
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "unused"}}),
            json!({"apiVersion": keys::API_VERSION, "kind": "MemberCluster", "metadata": {"name": "east"},
                "spec": {"clusterUID": "u"}, "status": {"x": 1}}),
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "cart", "namespace": "shop"}, "spec": {"a": 1}}),
        ] {
            fake.put(object);
        }
        fake
    }

    #[tokio::test]
    async fn what_was_saved_is_there_again_and_nothing_else() {
        let backup = take(&mk_hub().cluster(), HOME, true).await.unwrap();
        let backup = Backup::read(&backup.write()).unwrap();
        let fake = Fake::with_gateway_api();
        definitions().into_iter().for_each(|definition| fake.put(definition));
        // A kind is told of where there are objects of it.
        fake.put(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "other", "namespace": "shop"}}));
        restore(&fake.cluster(), HOME, backup.clone(), false, Steps::Silent).await.unwrap();
        let made: Vec<String> =
            fake.writes().into_iter().filter(|write| write.starts_with("create")).collect();
        let all = made.join("\n");
        for name in [
            "Secret/fairlead-hub-ca",
            "Secret/fairlead-hub-keys",
            "Namespace/shop",
            "MemberCluster/east",
            "HTTPRoute/cart",
        ] {
            assert!(all.contains(name), "{name} in {all}");
        }
        assert!(!all.contains("somebody-elses") && !all.contains("unused"), "{all}");
        // Again: everything is there, nothing is written.
        fake.forget_writes();
        restore(&fake.cluster(), HOME, backup, false, Steps::Silent).await.unwrap();
        assert!(!fake.writes().iter().any(|w| w.starts_with("merge")), "{:?}", fake.writes());
    }

    #[tokio::test]
    async fn keys_of_another_hub_are_replaced_only_when_a_person_says_so() {
        let backup = take(&mk_hub().cluster(), HOME, true).await.unwrap();
        let fake = mk_hub();
        fake.put(secret_of(keys::SECRET_HUB_CA, "b3RoZXI="));
        let refused = restore(&fake.cluster(), HOME, backup.clone(), false, Steps::Silent).await;
        let said = refused.unwrap_err().for_people();
        assert!(said.contains("is not replaced"), "{said}");
        restore(&fake.cluster(), HOME, backup, true, Steps::Silent).await.unwrap();
        let there =
            fake.cluster().get(&secret(), HOME, keys::SECRET_HUB_CA).await.unwrap().unwrap();
        assert_eq!(there["data"], json!({"k": "Y2E="}));
    }

    #[tokio::test]
    async fn the_history_of_a_hub_that_runs_here_stays_unless_a_person_says_otherwise() {
        let before = mk_hub();
        before.put(secret_of(keys::SECRET_HUB_HISTORY, "b2xk"));
        let backup = take(&before.cluster(), HOME, true).await.unwrap();
        let backup = Backup::read(&backup.write()).unwrap();
        let fake = mk_hub();
        let history = async || {
            let name = keys::SECRET_HUB_HISTORY;
            let found = fake.cluster().get(&secret(), HOME, name).await.unwrap();
            found.map(|found| found["data"].clone())
        };
        restore(&fake.cluster(), HOME, backup.clone(), false, Steps::Silent).await.unwrap();
        assert_eq!(history().await, Some(json!({"k": "b2xk"})));
        fake.put(secret_of(keys::SECRET_HUB_HISTORY, "bmV3"));
        restore(&fake.cluster(), HOME, backup.clone(), false, Steps::Silent).await.unwrap();
        assert_eq!(history().await, Some(json!({"k": "bmV3"})));
        restore(&fake.cluster(), HOME, backup, true, Steps::Silent).await.unwrap();
        assert_eq!(history().await, Some(json!({"k": "b2xk"})));
        // What was taken before there was a history, or by an older version, is whole without.
        let backup = take(&mk_hub().cluster(), HOME, true).await.unwrap();
        let fake = mk_hub();
        restore(&fake.cluster(), HOME, backup, false, Steps::Silent).await.unwrap();
    }

    #[tokio::test]
    async fn another_namespace_is_refused_and_a_missing_kind_is_named() {
        let backup = take(&mk_hub().cluster(), HOME, true).await.unwrap();
        let fake = Fake::new(definitions());
        let elsewhere =
            restore(&fake.cluster(), "other", backup.clone(), false, Steps::Silent).await;
        assert!(elsewhere.unwrap_err().for_people().contains("--namespace fairlead-system"));
        let missing = restore(&fake.cluster(), HOME, backup, false, Steps::Silent).await;
        let said = missing.unwrap_err().for_people();
        assert!(said.contains("its kind is not installed here"), "{said}");
    }
}
