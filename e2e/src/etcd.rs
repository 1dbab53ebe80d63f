//! An etcd of several nodes, for what is said of stores and hubs under faults.
//!
//! Owns the nodes' processes and data. Unlike the clusters' own etcd these sync to the disk: durability
//! is what is tried here.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Certificate, Client, CompactionOptions, ConnectOptions,
    Identity, Permission, TlsOptions,
};
use fairlead_hub::store::EtcdOptions;

use crate::{
    launch::Launch,
    pki::{Authority, Side},
    process::Unit,
    wait::{self, Look},
};

/// The user and role of a hub.
const USER: &str = "fairlead";
/// The first port beside a cluster, whose own etcd has the usual ones.
const CLUSTER_PORT: u16 = 23_790;
const START_LIMIT: Duration = Duration::from_secs(60);
/// A compaction waits for the disk.
const ASK_LIMIT: Duration = Duration::from_secs(15);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Where the nodes live.
pub enum Place {
    /// Loopback of the machine.
    Loopback,
    /// Beside a cluster, where its Pods reach them.
    Cluster { namespace: String, address: Ipv4Addr },
}

/// The nodes.
pub struct Etcd {
    nodes: Vec<Node>,
}

struct Node {
    unit: Unit,
    url: String,
}

impl Etcd {
    /// Starts so many nodes; `quota_bytes` bounds the data of each, 0 = etcd's own bound.
    pub async fn start(
        program: &Path,
        folder: &Path,
        place: &Place,
        nodes: usize,
        quota_bytes: u64,
    ) -> Result<Self> {
        let (netns, address) = match place {
            Place::Loopback => (None, Ipv4Addr::LOCALHOST),
            Place::Cluster { namespace, address } => (Some(namespace.clone()), *address),
        };
        let ports = match place {
            Place::Loopback => free_ports(2 * nodes)?,
            Place::Cluster { .. } => (CLUSTER_PORT..).take(2 * nodes).collect(),
        };
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let url = |port: u16| format!("http://{address}:{port}");
        let peers = ports.iter().skip(nodes).enumerate();
        let cluster: Vec<String> = peers.map(|(n, port)| format!("n{n}={}", url(*port))).collect();
        let node = |n: usize| {
            let (client, peer) = (url(ports[n]), url(ports[nodes + n]));
            let data = folder.join(format!("n{n}"));
            let argv = [
                program.display().to_string(),
                format!("--name=n{n}"),
                format!("--data-dir={}", data.display()),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster={}", cluster.join(",")),
                format!("--quota-backend-bytes={quota_bytes}"),
                "--log-level=warn".to_owned(),
            ];
            let launch = Launch { argv: argv.to_vec(), netns: netns.clone(), ..Launch::default() };
            let log = folder.join(format!("n{n}.log"));
            Node { unit: Unit::new(format!("etcd n{n}"), log, launch), url: client }
        };
        let etcd = Self { nodes: (0..nodes).map(node).collect() };
        for node in 0..nodes {
            etcd.revive(node).await?;
        }
        etcd.wait_leader().await?;
        Ok(etcd)
    }

    /// Starts one node on loopback that asks for a certificate and a password, with a user who may use
    /// only what starts with `prefix`; the options that let this user in.
    pub async fn start_guarded(
        program: &Path,
        folder: &Path,
        prefix: &str,
    ) -> Result<(Self, EtcdOptions)> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let ca = Authority::new("etcd CA")?;
        let server = ca.issue(Side::Server, "etcd", &[], &["127.0.0.1"])?;
        let client = ca.issue(Side::Client, "hub", &[], &[])?;
        let write = |name: &str, text: &str| {
            let file = folder.join(name);
            fs::write(&file, text).with_context(|| format!("writing {name}"))?;
            anyhow::Ok(file)
        };
        let (ca, cert) = (write("ca.crt", ca.cert_pem())?, write("tls.crt", &server.cert_pem)?);
        let key = write("tls.key", &server.key_pem)?;
        let ports = free_ports(2)?;
        let (url, peer) =
            (format!("https://127.0.0.1:{}", ports[0]), format!("http://127.0.0.1:{}", ports[1]));
        let argv = [
            program.display().to_string(),
            "--name=n0".to_owned(),
            format!("--data-dir={}", folder.join("n0").display()),
            format!("--listen-client-urls={url}"),
            format!("--advertise-client-urls={url}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=n0={peer}"),
            format!("--cert-file={}", cert.display()),
            format!("--key-file={}", key.display()),
            format!("--trusted-ca-file={}", ca.display()),
            "--client-cert-auth".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let launch = Launch { argv: argv.to_vec(), ..Launch::default() };
        let unit = Unit::new("guarded etcd", folder.join("n0.log"), launch);
        let etcd = Self { nodes: vec![Node { unit, url: url.clone() }] };
        etcd.revive(0).await?;
        let options = EtcdOptions {
            endpoints: vec![url],
            prefix: prefix.to_owned(),
            ca_file: Some(ca.clone()),
            cert_file: Some(write("client.crt", &client.cert_pem)?),
            key_file: Some(write("client.key", &client.key_pem)?),
            user: Some(USER.to_owned()),
            password_file: Some(write("password", "not a guess\n")?),
        };
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(fs::read(&ca)?))
            .identity(Identity::from_pem(&client.cert_pem, &client.key_pem));
        let connect = ConnectOptions::new().with_timeout(ASK_LIMIT).with_tls(tls);
        wait::until("etcd to know its users", START_LIMIT, || async {
            let client = Client::connect(&options.endpoints, Some(connect.clone())).await;
            Ok(match client {
                Ok(mut client) => match client.status().await {
                    Ok(_) => Look::Done(guard(&mut client, prefix).await?),
                    Err(error) => Look::Not(error.to_string()),
                },
                Err(error) => Look::Not(error.to_string()),
            })
        })
        .await?;
        Ok((etcd, options))
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.url.clone()).collect()
    }

    /// SIGKILL.
    pub async fn kill(&self, node: usize) {
        self.nodes[node].unit.kill().await;
    }

    pub async fn revive(&self, node: usize) -> Result<()> {
        self.nodes[node].unit.start().await
    }

    /// Waits until a majority has a leader; which node it is.
    pub async fn wait_leader(&self) -> Result<usize> {
        wait::until("etcd to have a leader", START_LIMIT, || async {
            for node in 0..self.nodes.len() {
                let Ok(mut client) = self.client(node).await else { continue };
                let Ok(status) = client.status().await else { continue };
                let own = status.header().map(|header| header.member_id());
                if status.leader() != 0 && own == Some(status.leader()) {
                    return Ok(Look::Done(node));
                }
            }
            Ok(Look::Not("nobody leads".into()))
        })
        .await
    }

    /// Makes another node the leader.
    pub async fn move_leader(&self) -> Result<()> {
        let leader = self.wait_leader().await?;
        let mut client = self.client(leader).await?;
        let members = client.member_list().await.context("listing etcd's members")?;
        let own = client.status().await.context("asking the leader")?.leader();
        let other = members.members().iter().find(|member| member.id() != own);
        let other = other.context("there is no other member")?.id();
        client.move_leader(other).await.context("moving the leader").map(|_| ())
    }

    /// Forgets all revisions but the newest.
    pub async fn compact(&self) -> Result<()> {
        let mut client = self.any().await?;
        let at = client.get("x", None).await.context("asking for the revision")?;
        let at = at.header().context("an answer without a header")?.revision();
        let options = CompactionOptions::new().with_physical();
        match client.compact(at, Some(options)).await {
            // Nothing was written since the last time.
            Err(error) if error.to_string().contains("has been compacted") => Ok(()),
            done => done.context("compacting").map(|_| ()),
        }
    }

    /// Gives back what deleted keys took, and lifts the alarm.
    pub async fn make_room(&self) -> Result<()> {
        self.compact().await?;
        for node in 0..self.nodes.len() {
            self.client(node).await?.defragment().await.context("defragmenting")?;
        }
        let mut client = self.any().await?;
        let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?;
        for alarm in alarms.alarms() {
            let mut of = AlarmOptions::new();
            of.with_member(alarm.member_id());
            let lifted = client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(of));
            lifted.await.context("lifting the alarm")?;
        }
        Ok(())
    }

    /// Whether there is a NOSPACE alarm.
    pub async fn is_full(&self) -> Result<bool> {
        let mut client = self.any().await?;
        let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await?;
        Ok(!alarms.alarms().is_empty())
    }

    async fn any(&self) -> Result<Client> {
        for node in 0..self.nodes.len() {
            if let Ok(client) = self.client(node).await {
                return Ok(client);
            }
        }
        bail!("no node of etcd answers")
    }

    async fn client(&self, node: usize) -> Result<Client> {
        let options =
            ConnectOptions::new().with_timeout(ASK_LIMIT).with_connect_timeout(CONNECT_LIMIT);
        Ok(Client::connect([&self.nodes[node].url], Some(options)).await?)
    }
}

/// From now on passwords are asked for.
async fn guard(client: &mut Client, prefix: &str) -> Result<()> {
    client.user_add("root", "root's", None).await?;
    client.user_grant_role("root", "root").await?;
    client.user_add(USER, "not a guess", None).await?;
    client.role_add(USER).await?;
    let all = Permission::read_write(prefix).with_prefix();
    client.role_grant_permission(USER, all).await?;
    client.user_grant_role(USER, USER).await?;
    client.auth_enable().await.context("asking for passwords")?;
    Ok(())
}

/// Ports of loopback that nobody uses now.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<std::io::Result<_>>()
        .context("looking for free ports")?;
    let port = |listener: &TcpListener| Ok(listener.local_addr()?.port());
    listeners.iter().map(port).collect()
}
