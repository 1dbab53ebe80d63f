//! A client that speaks the agents' protocol but is no agent: for facts about what the hub
//! refuses. It says whatever it is told to say, with any certificate.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use base64::{Engine, prelude::BASE64_STANDARD};
use fairlead_crds::keys;
use fairlead_model::{
    SnapshotNumber,
    session::{FromAgent, PROTOCOL, SnapshotUpdate},
    snapshot::Snapshot,
};
use fairlead_proto::{
    ledger::snapshot_to_ledger,
    pb::{self, enrollment_client::EnrollmentClient, fleet_client::FleetClient},
};
use rcgen::{CertificateParams, KeyPair};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::Fleet;
use crate::{cluster::Cluster, object::ObjectKey, pki::Leaf};

/// The name in every hub's certificate.
const HUB_NAME: &str = "hub.fairlead.internal";
/// Metadata of a refusal: the reason's name.
const REASON_KEY: &str = "fairlead-reason";
/// Larger than any message that the hub takes.
const HUGE_BYTES: usize = 8 << 20;

/// How the hub refused: the reason if it named one, the gRPC code, the message.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: String,
    pub code: String,
    pub message: String,
}

impl Refusal {
    fn of(status: &Status) -> Self {
        let reason = status.metadata().get(REASON_KEY).and_then(|reason| reason.to_str().ok());
        Self {
            reason: reason.unwrap_or_default().to_owned(),
            code: format!("{:?}", status.code()),
            message: status.message().to_owned(),
        }
    }
}

/// What an impostor says first on a stream.
#[derive(Clone, Debug)]
pub enum Opening {
    /// A hello of this member and cluster.
    Hello { member: String, cluster_uid: String },
    /// A hello that is too large for a message.
    Huge { member: String, cluster_uid: String },
}

impl Fleet<'_> {
    /// Asks the hub to enroll a cluster by a token, with the clock of the asker off by so much.
    pub async fn enroll_by_hand(
        &self,
        token: &str,
        member: &str,
        cluster_uid: &str,
        clock_off_ms: i64,
    ) -> Result<Option<Refusal>> {
        let now = jiff::Timestamp::now().as_millisecond().saturating_add(clock_off_ms);
        let now_ms = u64::try_from(now).unwrap_or_default();
        let request = enroll_request(token, member, cluster_uid)?;
        self.enroll_as(None, pb::EnrollRequest { now_ms, ..request }).await
    }

    /// Asks the hub to enroll whatever the request says, with any certificate or none.
    pub async fn enroll_as(
        &self,
        leaf: Option<&Leaf>,
        request: pb::EnrollRequest,
    ) -> Result<Option<Refusal>> {
        let channel = self.channel(leaf).await?;
        match EnrollmentClient::new(channel).enroll(request).await {
            Ok(_) => Ok(None),
            Err(status) => Ok(Some(Refusal::of(&status))),
        }
    }

    /// Renews a certificate for this key; the new certificate, or why there is none.
    pub async fn renew_as(
        &self,
        leaf: &Leaf,
        key_pem: &str,
    ) -> Result<std::result::Result<String, Refusal>> {
        let channel = self.channel(Some(leaf)).await?;
        let key = KeyPair::from_pem(key_pem).context("reading a key")?;
        let csr = CertificateParams::default().serialize_request(&key).context("making a CSR")?;
        let request = pb::RenewRequest { csr_pem: csr.pem().context("writing a CSR")? };
        let answer = EnrollmentClient::new(channel).renew(request).await;
        Ok(answer.map(|answer| answer.into_inner().certificate_pem).map_err(|s| Refusal::of(&s)))
    }

    /// Opens a stream with a member's own certificate and says something else. None: the hub
    /// welcomed it.
    pub async fn open_stream_as(&self, owner: &str, say: Opening) -> Result<Option<Refusal>> {
        let leaf = tls_secret(self.world().member(owner)?, keys::SECRET_AGENT_IDENTITY).await?;
        self.open_stream_with(&leaf, say).await
    }

    /// The same with any certificate.
    pub async fn open_stream_with(&self, leaf: &Leaf, say: Opening) -> Result<Option<Refusal>> {
        let channel = self.channel(Some(leaf)).await?;
        let mut client = FleetClient::new(channel).max_encoding_message_size(2 * HUGE_BYTES);
        let message = pb::AgentMessage { body: Some(pb::agent_message::Body::Hello(hello(say))) };
        // The stream stays open after its only message, as an agent's would.
        let messages = futures::StreamExt::chain(
            tokio_stream::once(message),
            futures::stream::pending::<pb::AgentMessage>(),
        );
        let answer = async {
            let mut answers = client.session(messages).await?.into_inner();
            answers.message().await
        };
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Err(_) => bail!("the hub did not answer in {ANSWER_LIMIT:?}"),
            Ok(Ok(Some(_))) => Ok(None),
            Ok(Ok(None)) => bail!("the hub ended the stream without a word"),
            Ok(Err(status)) => Ok(Some(Refusal::of(&status))),
        }
    }

    /// Takes a member's place at the hub and stays there until the hub ends the stream: when that was,
    /// and with which words. The member's agent must be away: of two the newer stream counts.
    pub async fn sit_in_for(&self, owner: &str) -> Result<JoinHandle<(Instant, Refusal)>> {
        let cluster = self.world().member(owner)?;
        let leaf = tls_secret(cluster, keys::SECRET_AGENT_IDENTITY).await?;
        let opening =
            Opening::Hello { member: owner.to_owned(), cluster_uid: cluster_uid(cluster).await? };
        let mut client = FleetClient::new(self.channel(Some(&leaf)).await?);
        let (say, said) = mpsc::channel(MESSAGES);
        // Later than any start of an agent: it must not be taken for one of before.
        let hello = pb::Hello { incarnation: u64::from(u32::MAX), ..hello(opening) };
        say.send(pb::AgentMessage { body: Some(pb::agent_message::Body::Hello(hello)) }).await?;
        let messages = tokio_stream::wrappers::ReceiverStream::new(said);
        let mut answers = client.session(messages).await?.into_inner();
        let first = tokio::time::timeout(ANSWER_LIMIT, answers.message()).await;
        first.context("the hub did not answer")??.context("the hub ended the stream")?;
        Ok(tokio::spawn(async move {
            let mut beats = tokio::time::interval(BEAT);
            loop {
                let answer = tokio::select! {
                    _ = beats.tick() => {
                        let beat = pb::Heartbeat { now_ms: now_ms(), ..pb::Heartbeat::default() };
                        let body = Some(pb::agent_message::Body::Heartbeat(beat));
                        // A closed stream says so by its answers.
                        let _ = say.send(pb::AgentMessage { body }).await;
                        continue;
                    }
                    answer = answers.message() => answer,
                };
                let status = match answer {
                    Ok(Some(_)) => continue,
                    Ok(None) => Status::cancelled("ended without a word"),
                    Err(status) => status,
                };
                return (Instant::now(), Refusal::of(&status));
            }
        }))
    }

    /// Takes a member's place at the hub, with its own certificate, and reports this of it until the
    /// liar is dropped. The member's agent must be away: of two the newer stream counts.
    pub async fn lie_as(&self, owner: &str, snapshot: &Snapshot) -> Result<Liar> {
        let cluster = self.world().member(owner)?;
        let leaf = tls_secret(cluster, keys::SECRET_AGENT_IDENTITY).await?;
        let uid = cluster_uid(cluster).await?;
        let mut client = FleetClient::new(self.channel(Some(&leaf)).await?);
        let (say, said) = mpsc::channel(MESSAGES);
        let opening = Opening::Hello { member: owner.to_owned(), cluster_uid: uid };
        let hello = pb::agent_message::Body::Hello(hello(opening));
        say.send(pb::AgentMessage { body: Some(hello) }).await?;
        let messages = tokio_stream::wrappers::ReceiverStream::new(said);
        let mut answers = client.session(messages).await?.into_inner();
        let first = tokio::time::timeout(ANSWER_LIMIT, answers.message()).await;
        first.context("the hub did not answer")??.context("the hub ended the stream")?;
        let update = SnapshotUpdate {
            number: SnapshotNumber { incarnation: 1, sequence: 1 },
            delta: snapshot_to_ledger(snapshot).full(),
        };
        for message in fairlead_proto::convert::agent_messages(&FromAgent::Snapshot(update)) {
            say.send(message).await?;
        }
        let taken = tokio::spawn(async move {
            // Read on, or the hub would wait for us.
            while let Ok(Some(_)) = answers.message().await {}
        });
        let beats = tokio::spawn(async move {
            loop {
                let beat = pb::Heartbeat { now_ms: now_ms(), ..pb::Heartbeat::default() };
                let body = Some(pb::agent_message::Body::Heartbeat(beat));
                if say.send(pb::AgentMessage { body }).await.is_err() {
                    return;
                }
                tokio::time::sleep(BEAT).await;
            }
        });
        Ok(Liar { tasks: [taken, beats] })
    }

    /// A connection to the agents' port, with any certificate or none.
    pub async fn channel(&self, leaf: Option<&Leaf>) -> Result<Channel> {
        let info = ObjectKey::new("v1", "ConfigMap", keys::NAMESPACE, keys::CONFIG_MAP_HUB);
        let info = self.hub().objects().get(&info).await?.context("no hub info")?;
        let ca = info["data"]["ca.crt"].as_str().context("the hub's info has no ca.crt")?;
        let mut tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)).domain_name(HUB_NAME);
        if let Some(leaf) = leaf {
            tls = tls.identity(Identity::from_pem(&leaf.cert_pem, &leaf.key_pem));
        }
        let endpoint = Endpoint::from_shared(self.hub_url().await?).context("the hub's address")?;
        let endpoint = endpoint.tls_config(tls).context("TLS towards the hub")?;
        endpoint.connect().await.context("connecting to the hub")
    }
}

/// Somebody in a member's place; leaves when it is dropped.
pub struct Liar {
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Messages on their way.
const MESSAGES: usize = 64;
/// More often than any hub takes for silence.
const BEAT: std::time::Duration = std::time::Duration::from_millis(300);
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);

/// A request to join, with a key of its own.
pub fn enroll_request(token: &str, member: &str, cluster_uid: &str) -> Result<pb::EnrollRequest> {
    let key = KeyPair::generate().context("making a key")?;
    let csr = CertificateParams::default().serialize_request(&key).context("making a CSR")?;
    Ok(pb::EnrollRequest {
        token: token.to_owned(),
        member: member.to_owned(),
        cluster_uid: cluster_uid.to_owned(),
        csr_pem: csr.pem().context("writing a CSR")?,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        protocol: Some(protocol()),
        now_ms: now_ms(),
        ..pb::EnrollRequest::default()
    })
}

fn protocol() -> pb::Protocol {
    pb::Protocol { major: PROTOCOL.major, minor: PROTOCOL.minor }
}

fn hello(say: Opening) -> pb::Hello {
    let (member, cluster_uid, agent_version) = match say {
        Opening::Hello { member, cluster_uid } => (member, cluster_uid, "0.1.0".to_owned()),
        Opening::Huge { member, cluster_uid } => (member, cluster_uid, "x".repeat(HUGE_BYTES)),
    };
    pb::Hello {
        member,
        cluster_uid,
        agent_version,
        protocol: Some(protocol()),
        incarnation: 1,
        now_ms: now_ms(),
        ..pb::Hello::default()
    }
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

/// Reads certificate and key from a Secret of a cluster's `fairlead-system`.
pub async fn tls_secret(cluster: &Cluster, name: &str) -> Result<Leaf> {
    let key = ObjectKey::new("v1", "Secret", keys::NAMESPACE, name);
    let secret = cluster.objects().get(&key).await?;
    let secret = secret.with_context(|| format!("{} has no {key}", cluster.name()))?;
    let text = |field: &str| {
        let text = secret["data"][field].as_str();
        let text = text.with_context(|| format!("{key} has no {field}"))?;
        let bytes = BASE64_STANDARD.decode(text).context("base64 of a Secret")?;
        String::from_utf8(bytes).context("PEM of a Secret")
    };
    Ok(Leaf { cert_pem: text("tls.crt")?, key_pem: text("tls.key")? })
}

/// The UID of a cluster: that of its namespace kube-system.
pub async fn cluster_uid(cluster: &Cluster) -> Result<String> {
    let key = ObjectKey::new("v1", "Namespace", "", "kube-system");
    let namespace = cluster.objects().get(&key).await?.context("no namespace kube-system")?;
    let uid = namespace["metadata"]["uid"].as_str().context("a namespace without UID")?;
    Ok(uid.to_owned())
}
