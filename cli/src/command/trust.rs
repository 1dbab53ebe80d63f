//! `fairlead trust`: shows whose crossing CA this member believes, and confirms one that it does not.
//!
//! Reads what the agent keeps in a ConfigMap, and writes one annotation on it under the caller's own RBAC.
//! Decides nothing: the agent believes a hash that is named there.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use fairlead_crds::keys;
use fairlead_model::pin::CaPin;
use fairlead_model::{Json, MemberId};
use serde_json::json;

use crate::args::Connection;
use crate::cluster::{Cluster, NameIn, config_map};
use crate::command::join::parse_timeout;
use crate::failure::Failure;
use crate::output::{self, Format, columns, list};
use crate::progress::Steps;

const ASK_EVERY: Duration = Duration::from_millis(500);

const AFTER_HELP: &str = "\
A member remembers the first crossing CA of each other one. A later one is believed when the one
before signed it, as `fairlead rotate crossing-ca` does; another is refused, and the one before
stays. If you know that the other member's admin made it (its Secret was lost, or deleted on
purpose), compare the hash with what this command shows in that member, and confirm it here.
A member that leaves and joins again is remembered anew. Run this in a member's cluster.

EXAMPLES
  fairlead trust
  fairlead trust eu-2 --ca sha256:5f0c…";

/// Arguments of `trust`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct TrustArgs {
    /// Confirm a CA of this member.
    #[arg(requires = "ca")]
    member: Option<MemberId>,
    /// Hash of the CA to believe.
    #[arg(long, value_name = "sha256:HASH", requires = "member", value_parser = parse_hash)]
    ca: Option<String>,
    /// Longest time to wait until the agent believes it.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

fn parse_hash(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    match digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(text),
        false => Err("a hash is sha256: and 64 hexadecimal digits".to_owned()),
    }
}

/// Shows, or confirms.
pub(crate) async fn run(connection: &Connection, args: &TrustArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let trust = TrustIn { cluster: &cluster, home: &connection.namespace };
    match (&args.member, &args.ca) {
        (Some(member), Some(hash)) => {
            let steps = Steps::for_stderr();
            trust.confirm(member, hash, steps).await?;
            trust.await_belief(member, hash, args.timeout, steps).await
        }
        _ => {
            let pins = pins_of(&trust.read().await?);
            output::show(args.output, &pins, || table(&pins));
            Ok(())
        }
    }
}

/// By cluster UID.
type Pins = BTreeMap<String, CaPin>;

struct TrustIn<'a> {
    cluster: &'a Cluster,
    home: &'a str,
}

impl TrustIn<'_> {
    async fn read(&self) -> Result<Json, Failure> {
        let name = keys::CONFIG_MAP_AGENT_PINS;
        let found = self.cluster.get(&config_map(), self.home, name).await?;
        found.ok_or_else(|| {
            Failure::failed(
                "nothing is known of other members' CAs",
                format!("there is no ConfigMap {}/{name}", self.home),
            )
            .next("the agent makes it with its first plan; this needs a member's kubeconfig")
        })
    }

    async fn confirm(&self, member: &MemberId, hash: &str, steps: Steps) -> Result<(), Failure> {
        let found = self.read().await?;
        let pins = pins_of(&found);
        let of_member: Vec<&CaPin> =
            pins.values().filter(|pin| pin.member == member.as_str() && !pin.own).collect();
        let what = || format!("no CA of {member} was confirmed");
        if of_member.is_empty() {
            return Err(Failure::failed(what(), format!("this member knows no CA of {member}"))
                .next("see `fairlead trust`"));
        }
        let shown: Vec<&String> =
            of_member.iter().flat_map(|pin| pin.refused.iter().chain(&pin.believed)).collect();
        // A slip would be kept for ever, and believed once somebody shows it.
        if !shown.iter().any(|known| known.as_str() == hash) {
            let why = format!("{member} shows no CA with that hash, but {}", list(&shown));
            return Err(Failure::failed(what(), why)
                .next(format!("compare it with what `fairlead trust` shows in {member}")));
        }
        let before = found["metadata"]["annotations"][keys::TRUST].as_str().unwrap_or_default();
        let mut hashes: Vec<&str> =
            before.split(',').map(str::trim).filter(|it| !it.is_empty() && *it != hash).collect();
        hashes.push(hash);
        let patch = json!({"metadata": {"annotations": {keys::TRUST: hashes.join(",")}}});
        let name = NameIn { namespace: self.home, name: keys::CONFIG_MAP_AGENT_PINS };
        self.cluster.merge(&config_map(), &name, &patch).await?;
        steps.done(format!("confirmed the CA {hash} of {member}"));
        Ok(())
    }

    async fn await_belief(
        &self,
        member: &MemberId,
        hash: &str,
        timeout: Duration,
        steps: Steps,
    ) -> Result<(), Failure> {
        let start = tokio::time::Instant::now();
        let waiting = steps.wait(format!("waiting for the agent to believe {member}"));
        let believes = |pin: &CaPin| {
            pin.member == member.as_str() && pin.believed.iter().any(|known| known == hash)
        };
        while start.elapsed() < timeout {
            if pins_of(&self.read().await?).values().any(believes) {
                drop(waiting);
                steps.done(format!("the agent believes {member}"));
                return Ok(());
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        drop(waiting);
        let what = format!("the agent does not believe {member} after {timeout:?}");
        Err(Failure::timed_out(what, "it was confirmed, but the agent has not followed").next(
            "see the log of the agent: kubectl -n fairlead-system logs deploy/fairlead-agent",
        ))
    }
}

/// Entries that have no meaning are left out, as the agent does.
fn pins_of(map: &Json) -> Pins {
    let entries = map["data"].as_object().into_iter().flatten();
    let pin = |(uid, text): (&String, &Json)| {
        Some((uid.clone(), serde_json::from_str(text.as_str()?).ok()?))
    };
    entries.filter_map(pin).collect()
}

fn table(pins: &Pins) -> String {
    if pins.is_empty() {
        return "No plan has named another member yet.".to_owned();
    }
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (uid, pin) in pins {
        let state = match (pin.own, pin.believed.len()) {
            (true, 0 | 1) => "own",
            (true, _) => "own, changing",
            (false, 0 | 1) => "believed",
            (false, _) => "believed, changing",
        };
        let believed = pin.believed.iter().map(|hash| (hash, state));
        let refused = pin.refused.iter().map(|hash| (hash, "refused: see fairlead trust --help"));
        rows.extend(believed.chain(refused).map(|(hash, state)| {
            vec![pin.member.clone(), uid.clone(), hash.clone(), state.to_owned()]
        }));
    }
    rows.sort();
    columns(&["MEMBER", "CLUSTER", "CA", "STATE"], rows)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake::Fake;

    fn hash(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn mk_map(trust: Option<&str>) -> Json {
        let pin = |member: &str, own: bool, refused: Vec<String>| {
            let believed = vec![hash('a')];
            let pin = CaPin { member: member.into(), believed, refused, own, ..CaPin::default() };
            serde_json::to_string(&pin).unwrap()
        };
        let mut map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": keys::CONFIG_MAP_AGENT_PINS, "namespace": "home", "annotations": {}},
            "data": {"u-west": pin("west", false, vec![hash('b')]), "u-east": pin("east", true, vec![]),
                "u-broken": "{"}});
        if let Some(trust) = trust {
            map["metadata"]["annotations"][keys::TRUST] = trust.into();
        }
        map
    }

    async fn confirm(fake: &Fake, member: &str, hash: &str) -> Result<String, Failure> {
        let cluster = fake.cluster();
        let trust = TrustIn { cluster: &cluster, home: "home" };
        trust.confirm(&MemberId::new(member).unwrap(), hash, Steps::Silent).await?;
        let found = trust.read().await?;
        Ok(found["metadata"]["annotations"][keys::TRUST].as_str().unwrap().to_owned())
    }

    #[tokio::test]
    async fn what_is_shown_can_be_confirmed_and_is_added() {
        let fake = Fake::new([mk_map(None)]);
        assert_eq!(confirm(&fake, "west", &hash('b')).await.unwrap(), hash('b'));
        let fake = Fake::new([mk_map(Some(&format!("{}, {}", hash('b'), hash('c'))))]);
        let both = format!("{},{}", hash('c'), hash('b'));
        assert_eq!(confirm(&fake, "west", &hash('b')).await.unwrap(), both);
    }

    #[tokio::test]
    async fn what_nobody_shows_is_not_written() {
        let fake = Fake::new([mk_map(None)]);
        let failure = confirm(&fake, "west", &hash('c')).await.unwrap_err().for_people();
        assert!(failure.contains(&hash('b')), "{failure}");
        for member in ["north", "east"] {
            let failure = confirm(&fake, member, &hash('a')).await.unwrap_err().for_people();
            assert!(failure.contains("knows no CA"), "{failure}");
        }
        assert_eq!(fake.writes(), [""; 0]);
    }

    #[test]
    fn the_table_names_what_is_believed_and_what_is_not() {
        let pins = pins_of(&mk_map(None));
        let text = table(&pins);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[1].contains("east") && lines[1].ends_with("own"), "{text}");
        assert!(lines[2].contains(&hash('a')) && lines[2].ends_with("believed"), "{text}");
        assert!(lines[3].contains(&hash('b')) && lines[3].contains("refused"), "{text}");
    }

    #[test]
    fn a_hash_is_named_in_full() {
        assert_eq!(parse_hash(&hash('A')).unwrap(), hash('a'));
        for text in ["", "sha256:", "sha256:abc", &hash('g'), &hash('a')[7..]] {
            assert!(parse_hash(text).is_err(), "{text}");
        }
    }
}
