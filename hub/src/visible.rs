//! Looks through a resolver whether the world sees what DNSPolicies publish.
//!
//! Thin: what to ask and what to make of it is [`fairlead_hub_core::visible`]. Never touches what is published:
//! a resolver that lies or fails changes a condition and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use fairlead_hub_core::visible::{Answer, Question, Verdicts, Visibility, questions};
use fairlead_model::NsName;
use fairlead_model::dns::Published;
use futures::StreamExt as _;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};

use crate::clock;
use crate::conductor::Current;
use crate::signal::Signal;

/// Questions at once.
const ASKS_MAX: usize = 4;
/// Between two looks whether there is anything to ask.
const IDLE: Duration = Duration::from_secs(2);
/// One server gets that long, twice.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The one that looks.
pub struct Lookout {
    /// What was decided last.
    pub current: Arc<ArcSwap<Current>>,
    /// What it found.
    pub verdicts: Arc<ArcSwap<Verdicts>>,
    /// Told when that changed.
    pub changed: Arc<Signal>,
    /// Between two looks.
    pub period: Duration,
    /// Whom to ask; empty = as the pod does.
    pub servers: Vec<SocketAddr>,
}

impl Lookout {
    /// Looks for ever.
    pub async fn run(self) {
        let resolver = match build(&self.servers) {
            Ok(resolver) => Some(resolver),
            Err(error) => {
                tracing::warn!(%error, "no resolver: nobody looks whether names are visible");
                None
            }
        };
        let mut visibility = Visibility::default();
        loop {
            let asked = futures::stream::iter(self.questions())
                .map(|question| async {
                    let answer = ask(resolver.as_ref(), &question).await;
                    (question, answer)
                })
                .buffer_unordered(ASKS_MAX);
            let answers: Vec<(Question, Answer)> = asked.collect().await;
            // Nothing to ask: the first plan or the first policy may come any moment.
            let pause = if answers.is_empty() { IDLE } else { self.period };
            visibility.hear(&answers, clock::now());
            let verdicts = visibility.verdicts();
            if **self.verdicts.load() != verdicts {
                self.verdicts.store(Arc::new(verdicts));
                self.changed.mark();
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn questions(&self) -> Vec<Question> {
        let current = self.current.load();
        let Some(planned) = &current.planned else { return Vec::new() };
        let written = planned.plans.values().flat_map(|plan| &plan.published);
        let published: BTreeMap<NsName, &Published> =
            written.map(|(policy, published)| (policy.clone(), published)).collect();
        questions(&current.ingested.policy.dns, &planned.memory.dns.zones, &published)
    }
}

fn build(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio()?,
        servers => {
            let servers = servers.iter().map(|server| {
                let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
                (udp.port, tcp.port) = (server.port(), server.port());
                NameServerConfig::new(server.ip(), true, vec![udp, tcp])
            });
            let config = ResolverConfig::from_parts(None, vec![], servers.collect());
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options = builder.options_mut();
    // What the world sees now, not what we saw before.
    options.cache_size = 0;
    options.timeout = ASK_TIMEOUT;
    options.attempts = 2;
    builder.build()
}

async fn ask(resolver: Option<&TokioResolver>, question: &Question) -> Answer {
    let Some(resolver) = resolver else { return Answer::Failed("there is no resolver".to_owned()) };
    // A dot at the end: no search list, the name is whole.
    let name = match Name::from_ascii(format!("{}.", question.name)) {
        Ok(name) => name,
        Err(error) => return Answer::Failed(error.to_string()),
    };
    let kind = if question.is_v4() { RecordType::A } else { RecordType::AAAA };
    match resolver.lookup(name, kind).await {
        Ok(found) => {
            let ips = found.answers().iter().filter_map(|record| record.data.ip_addr());
            let ips: BTreeSet<IpAddr> = ips.collect();
            if ips.is_empty() { Answer::Nothing } else { Answer::Addresses(ips) }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none)))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError) =>
        {
            Answer::Nothing
        }
        Err(error) => Answer::Failed(error.to_string()),
    }
}
