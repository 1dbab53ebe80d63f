//! The demo's name: a DNSPolicy makes the agents answer for it, and one of them is asked all along.
//!
//! What it answered before, while a member was dead, and after that, is shown and checked.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fairlead_crds::keys;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    ask::{Question, Resolver},
    fleet::{Fleet, shop},
    report::milliseconds,
    wait::{self, Look},
};

const ZONE: &str = "example.com";
/// The agents' port.
const PORT: u16 = 5353;
const TTL_S: u32 = 5;
const PERIOD: Duration = Duration::from_millis(20);
const PUBLISH_LIMIT: Duration = Duration::from_secs(30);
/// How long the asked agent may go on naming a member that is dead.
const GONE_MS_MAX: f64 = 10_000.0;

/// `names` of `demo.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Names {
    /// The name.
    name: String,
    /// Whose agent was asked.
    asked: String,
    /// Addresses answered before the failover, by member that has them.
    before: BTreeSet<IpAddr>,
    /// The first answer without the dead member.
    during: BTreeSet<IpAddr>,
    /// From the kill to that answer.
    gone_after_ms: Option<f64>,
    /// Addresses answered when all was over.
    after: BTreeSet<IpAddr>,
    /// Questions that nobody answered.
    unanswered: usize,
}

/// What was seen so far.
#[derive(Default)]
struct Log {
    /// Answers that differ from the one before, with their time.
    answers: Vec<(Instant, BTreeSet<IpAddr>)>,
    unanswered: usize,
}

/// An agent that is asked all along.
pub(super) struct Watch {
    asked: String,
    server: SocketAddr,
    log: Arc<Mutex<Log>>,
    task: JoinHandle<()>,
    killed: Option<Instant>,
}

impl Watch {
    /// Declares the policy, waits until the agent of `asked` names every member, and goes on asking it.
    pub(super) async fn start(fleet: &Fleet<'_>, asked: &str) -> Result<Self> {
        let policy = json!({
            "apiVersion": keys::API_VERSION, "kind": "DNSPolicy",
            "metadata": {"name": "names", "namespace": shop::GATEWAY_NAMESPACE},
            "spec": {
                "targetRefs": [{"group": keys::GATEWAY_GROUP, "kind": "Gateway", "name": "public"}],
                "zone": ZONE, "strategy": "All", "ttlSeconds": TTL_S,
            },
        });
        fleet.world().hub().objects().apply(&policy).await?;
        let member = fleet.world().member(asked)?;
        let server = SocketAddr::new(member.local()?.pods.address.into(), PORT);
        let members = fleet.world().members().count();
        let question = Question::address(shop::HOST)?;
        let first = wait::until("every member to be named", PUBLISH_LIMIT, || async {
            // Before the zone is there the answer is a refusal.
            let found = match Resolver::to(server).await?.addresses(&question).await {
                Ok(found) => found,
                Err(error) => return Ok(Look::Not(format!("{error:#}"))),
            };
            Ok(match found.len() == members {
                true => Look::Done(found),
                false => Look::Not(format!("named are {found:?}")),
            })
        })
        .await?;
        println!("[{asked}] $ dig @{} -p {PORT} +short {}", server.ip(), shop::HOST);
        for address in &first {
            println!("    {address}");
        }
        let answers = vec![(Instant::now(), first)];
        let log = Arc::new(Mutex::new(Log { answers, unanswered: 0 }));
        let task = tokio::spawn(keep_asking(server, question, Arc::clone(&log)));
        Ok(Self { asked: asked.to_owned(), server, log, task, killed: None })
    }

    /// A member is killed now.
    pub(super) fn note_kill(&mut self) {
        self.killed = Some(Instant::now());
    }

    /// Waits until all are named again, and says what was seen.
    pub(super) async fn end(self) -> Result<Names> {
        let question = Question::address(shop::HOST)?;
        let before = self.look(|log| log.answers.first().map(|(_, found)| found.clone()));
        let before = before.unwrap_or_default();
        let returned = wait::until("every member to be named again", PUBLISH_LIMIT, || async {
            let found = Resolver::to(self.server).await?.addresses(&question).await?;
            Ok(match found == before {
                true => Look::Done(found),
                false => Look::Not(format!("named are {found:?}")),
            })
        });
        let after = returned.await.context("the name after the failover");
        self.task.abort();
        let gone = self.look(|log| {
            let killed = self.killed?;
            let fewer = |(at, found): &&(Instant, BTreeSet<IpAddr>)| {
                *at >= killed && found.len() < before.len()
            };
            log.answers.iter().find(fewer).map(|(at, found)| (*at - killed, found.clone()))
        });
        let names = Names {
            name: shop::HOST.to_owned(),
            asked: self.asked.clone(),
            gone_after_ms: gone.as_ref().map(|(after, _)| milliseconds(*after)),
            during: gone.map(|(_, found)| found).unwrap_or_default(),
            after: after.unwrap_or_default(),
            unanswered: self.look(|log| log.unanswered),
            before,
        };
        println!("\n── The name {}, as the agent of {} answered it", names.name, names.asked);
        println!("  before {:?}, with a dead member {:?}", names.before, names.during);
        if let Some(ms) = names.gone_after_ms {
            println!(
                "  {ms:.0} ms after the kill it was not named any more; in the end {:?}",
                names.after
            );
        }
        Ok(names)
    }

    fn look<T>(&self, see: impl FnOnce(&Log) -> T) -> T {
        see(&self.log.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn keep_asking(server: SocketAddr, question: Question, log: Arc<Mutex<Log>>) {
    let mut beat = tokio::time::interval(PERIOD);
    let mut resolver = None;
    loop {
        beat.tick().await;
        if resolver.is_none() {
            resolver = Resolver::to(server).await.ok();
        }
        let Some(open) = resolver.as_mut() else { continue };
        let found = open.addresses(&question).await;
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok(found) => {
                if log.answers.last().is_none_or(|(_, last)| *last != found) {
                    log.answers.push((Instant::now(), found));
                }
            }
            Err(_) => {
                log.unanswered += 1;
                resolver = None;
            }
        }
    }
}

/// What is not as promised.
pub(super) fn problems(names: &Names) -> Vec<String> {
    let mut problems = Vec::new();
    let name = &names.name;
    match names.gone_after_ms {
        None => problems.push(format!("{name} went on naming a dead member")),
        Some(ms) if ms > GONE_MS_MAX => {
            problems.push(format!("{name} named a dead member for {ms:.0} ms"));
        }
        Some(_) => {}
    }
    if names.gone_after_ms.is_some()
        && (names.during.is_empty() || !names.during.is_subset(&names.before))
    {
        problems.push(format!("{name} was answered with {:?}", names.during));
    }
    if names.after != names.before {
        problems.push(format!("{name} does not name every member again"));
    }
    if names.unanswered > 0 {
        problems.push(format!("{} questions for {name} were not answered", names.unanswered));
    }
    problems
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn mk_names() -> Names {
        Names {
            name: "shop.example.com".to_owned(),
            asked: "west".to_owned(),
            before: ips(&["192.0.2.1", "192.0.2.2"]),
            during: ips(&["192.0.2.2"]),
            gone_after_ms: Some(600.0),
            after: ips(&["192.0.2.1", "192.0.2.2"]),
            unanswered: 0,
        }
    }

    #[test]
    fn a_broken_promise_about_the_name_is_told() {
        assert_eq!(problems(&mk_names()), Vec::<String>::new());
        let cases: [(Names, &str); 6] = [
            (Names { gone_after_ms: None, ..mk_names() }, "went on naming"),
            (Names { gone_after_ms: Some(11_000.0), ..mk_names() }, "for 11000 ms"),
            (Names { during: ips(&[]), ..mk_names() }, "was answered with"),
            (Names { during: ips(&["192.0.2.9"]), ..mk_names() }, "was answered with"),
            (Names { after: ips(&["192.0.2.2"]), ..mk_names() }, "does not name every"),
            (Names { unanswered: 3, ..mk_names() }, "3 questions"),
        ];
        for (names, part) in cases {
            let told = problems(&names);
            assert!(told.len() == 1 && told[0].contains(part), "{part}: {told:?}");
        }
    }
}
