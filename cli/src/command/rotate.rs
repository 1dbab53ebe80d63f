//! `fairlead rotate`: asks the hub, or a member's agent, for new keys, and follows the change to its end.
//!
//! Writes one annotation on the Secret that is changed, under the caller's own RBAC: the hub or the agent
//! counts a text that it has not seen yet as a request, and says in another annotation how far it is. Never
//! makes, reads or shows a key itself.

use std::time::Duration;

use clap::{Args, ValueEnum};
use fairlead_crds::keys;
use fairlead_model::{Json, MemberId};
use jiff::Timestamp;
use serde_json::json;

use crate::args::Connection;
use crate::cluster::{Cluster, NameIn, secret};
use crate::command::join::parse_timeout;
use crate::failure::Failure;
use crate::progress::Steps;

const ASK_EVERY: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
hub-ca           the CA of the control plane. Members get certificates of the new one beside the
                 old, then the old one goes. Join lines that were printed before name the old
                 one: print new ones.
capability-keys  the keys behind capabilities and server names. Doors know a new key before any
                 route uses it; afterwards nothing opens by what a route held before.
crossing-ca      the CA by which this member's door and callers are known to other members; run
                 it with that member's kubeconfig. The old one signs the new one, others believe
                 both, then certificates are of the new one, then the old one goes.

No request fails and nobody joins anew. Every member that is concerned is waited for before
each step: one that is away holds the change up, unless you leave it out with --without. A
member that was left out has to join again after hub-ca; after capability-keys and crossing-ca
it exchanges nothing with others until it is back. Run again while a change is under way, the
command follows it.

EXAMPLES
  fairlead rotate hub-ca
  fairlead rotate capability-keys --without eu-2
  fairlead rotate crossing-ca --kubeconfig eu-1.yaml";

/// Arguments of `rotate`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RotateArgs {
    /// What is changed.
    #[arg(value_enum)]
    what: What,
    /// Do not wait for this member. May be given several times.
    #[arg(long, value_name = "MEMBER")]
    without: Vec<MemberId>,
    /// Ask only; the change goes on by itself.
    #[arg(long)]
    no_wait: bool,
    /// Longest time to follow it; the change goes on by itself.
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = parse_timeout)]
    timeout: Duration,
}

/// What can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The CA that signs agents' certificates and the hub's own.
    HubCa,
    /// The keys behind capabilities.
    CapabilityKeys,
    /// The CA of one member's door and callers, in that member.
    CrossingCa,
}

impl What {
    fn secret(self) -> &'static str {
        match self {
            Self::HubCa => keys::SECRET_HUB_CA,
            Self::CapabilityKeys => keys::SECRET_HUB_KEYS,
            Self::CrossingCa => keys::SECRET_CROSSING_CA,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::HubCa => "the CA of the hub",
            Self::CapabilityKeys => "the keys of capabilities",
            Self::CrossingCa => "the crossing CA of this cluster",
        }
    }

    /// Who changes it.
    fn by(self) -> &'static str {
        match self {
            Self::HubCa | Self::CapabilityKeys => "the hub",
            Self::CrossingCa => "the agent",
        }
    }
}

/// Asks, and follows.
pub(crate) async fn run(connection: &Connection, args: &RotateArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let rotation = Rotation { cluster: &cluster, home: &connection.namespace, what: args.what };
    let asked = rotation.ask(args, Timestamp::now(), Steps::for_stderr()).await?;
    if args.no_wait {
        return Ok(());
    }
    rotation.follow(&asked, args.timeout, Steps::for_stderr()).await
}

struct Rotation<'a> {
    cluster: &'a Cluster,
    home: &'a str,
    what: What,
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    /// Not begun.
    Unseen,
    /// In words.
    UnderWay(String),
    Done,
}

impl Rotation<'_> {
    async fn read(&self) -> Result<Json, Failure> {
        let name = self.what.secret();
        let found = self.cluster.get(&secret(), self.home, name).await?;
        found.ok_or_else(|| {
            Failure::failed(
                format!("{} cannot be changed", self.what.words()),
                format!("there is no Secret {}/{name}", self.home),
            )
            .next(format!(
                "{} makes it at its first start; this needs the kubeconfig of its cluster",
                self.what.by()
            ))
        })
    }

    /// Gives the text that asks: that of a change under way, or a new one.
    async fn ask(
        &self,
        args: &RotateArgs,
        now: Timestamp,
        steps: Steps,
    ) -> Result<String, Failure> {
        let found = self.read().await?;
        let under_way = record_of(&found).filter(|record| record["done"] != true);
        let under_way = under_way.and_then(|record| Some(record["asked"].as_str()?.to_owned()));
        let asked = under_way.clone().unwrap_or_else(|| now.to_string());
        let without: Vec<&str> = args.without.iter().map(MemberId::as_str).collect();
        let without = (!without.is_empty()).then(|| without.join(","));
        let patch = json!({"metadata": {"annotations": {
            // A null takes away what an earlier change left out.
            keys::ROTATE: asked, keys::ROTATE_WITHOUT: without,
        }}});
        let name = NameIn { namespace: self.home, name: self.what.secret() };
        self.cluster.merge(&secret(), &name, &patch).await?;
        let words = self.what.words();
        steps.done(match under_way {
            Some(_) => format!("a change of {words} is under way"),
            None => format!("asked {} to change {words}", self.what.by()),
        });
        Ok(asked)
    }

    async fn follow(&self, asked: &str, timeout: Duration, steps: Steps) -> Result<(), Failure> {
        let start = tokio::time::Instant::now();
        let mut waiting = steps.wait(format!("changing {}", self.what.words()));
        let mut last = format!("{} has not begun", self.what.by());
        while start.elapsed() < timeout {
            match progress(&self.read().await?, asked) {
                Progress::Done => {
                    drop(waiting);
                    steps.done(format!("changed {}; the old is gone", self.what.words()));
                    return Ok(());
                }
                Progress::UnderWay(text) => {
                    waiting.show(&text);
                    last = text;
                }
                Progress::Unseen => {}
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        drop(waiting);
        let what = format!("{} were not changed in {timeout:?}", self.what.words());
        Err(Failure::timed_out(what, last).next(format!(
            "{} goes on by itself; run this again to follow it, with --without MEMBER to leave out a member \
             that does not come back",
            self.what.by()
        )))
    }
}

fn record_of(object: &Json) -> Option<Json> {
    let text = object["metadata"]["annotations"][keys::ROTATION].as_str()?;
    serde_json::from_str(text).ok()
}

fn progress(object: &Json, asked: &str) -> Progress {
    let Some(record) = record_of(object).filter(|record| record["asked"] == asked) else {
        return Progress::Unseen;
    };
    if record["done"] == true {
        return Progress::Done;
    }
    let names = record["waitingFor"].as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(Json::as_str).collect();
    let more = record["waitingForMore"].as_u64().unwrap_or(0);
    let waits = match (names.as_slice(), more) {
        ([], _) => "all hold it".to_owned(),
        (names, 0) => format!("waiting for {}", names.join(", ")),
        (names, more) => format!("waiting for {} and {more} more", names.join(", ")),
    };
    Progress::UnderWay(format!("step {} of {} is done, {waits}", record["step"], record["of"]))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn mk_secret(record: Option<Json>) -> Json {
        let mut object = json!({"apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": keys::SECRET_HUB_CA, "namespace": "home",
                "annotations": {"other": "kept"}}, "data": {"tls.crt": "eA=="}});
        if let Some(record) = record {
            object["metadata"]["annotations"][keys::ROTATION] = record.to_string().into();
        }
        object
    }

    fn mk_args(without: &[&str]) -> RotateArgs {
        RotateArgs {
            what: What::HubCa,
            without: without.iter().map(|name| MemberId::new(name).unwrap()).collect(),
            no_wait: true,
            timeout: Duration::from_secs(1),
        }
    }

    async fn ask(fake: &Fake, args: &RotateArgs) -> Result<String, Failure> {
        let cluster = fake.cluster();
        let rotation = Rotation { cluster: &cluster, home: "home", what: args.what };
        let now = "2026-11-21T10:00:00Z".parse().unwrap();
        rotation.ask(args, now, Steps::Silent).await
    }

    #[tokio::test]
    async fn the_request_is_an_annotation_and_touches_no_key() {
        let fake = Fake::new([mk_secret(None)]);
        assert_eq!(ask(&fake, &mk_args(&["west", "east"])).await.unwrap(), "2026-11-21T10:00:00Z");
        let found = fake.cluster().get(&secret(), "home", keys::SECRET_HUB_CA).await;
        let found = found.unwrap().unwrap();
        let annotations = &found["metadata"]["annotations"];
        assert_eq!(annotations[keys::ROTATE], "2026-11-21T10:00:00Z");
        assert_eq!(annotations[keys::ROTATE_WITHOUT], "west,east");
        assert_eq!(
            (&annotations["other"], &found["data"]["tls.crt"]),
            (&json!("kept"), &json!("eA=="))
        );
    }

    #[tokio::test]
    async fn a_change_under_way_is_followed_and_a_finished_one_is_asked_for_anew() {
        for (done, want) in [(false, "before"), (true, "2026-11-21T10:00:00Z")] {
            let fake = Fake::new([mk_secret(Some(json!({"asked": "before", "done": done})))]);
            assert_eq!(ask(&fake, &mk_args(&[])).await.unwrap(), want);
        }
    }

    #[tokio::test]
    async fn without_a_hub_nothing_is_written() {
        let fake = Fake::new([]);
        let failure = ask(&fake, &mk_args(&[])).await.unwrap_err().for_people();
        assert!(failure.contains("home/fairlead-hub-ca"), "{failure}");
        assert_eq!(fake.writes(), [""; 0]);
    }

    #[test]
    fn progress_names_the_step_and_who_is_waited_for() {
        let of = |record: Json| progress(&mk_secret(Some(record)), "a");
        assert_eq!(progress(&mk_secret(None), "a"), Progress::Unseen);
        assert_eq!(of(json!({"asked": "b", "done": true})), Progress::Unseen);
        assert_eq!(of(json!({"asked": "a", "done": true})), Progress::Done);
        let rows = [
            (json!([]), 0, "step 1 of 2 is done, all hold it"),
            (json!(["x", "y"]), 0, "step 1 of 2 is done, waiting for x, y"),
            (json!(["x"]), 4, "step 1 of 2 is done, waiting for x and 4 more"),
        ];
        for (names, more, want) in rows {
            let record = json!({"asked": "a", "step": 1, "of": 2, "done": false,
                "waitingFor": names, "waitingForMore": more});
            assert_eq!(of(record), Progress::UnderWay(want.to_owned()));
        }
    }
}
