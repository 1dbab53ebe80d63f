//! d: straight at another member's door, with all that a thief could have found.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use fairlead_crds::keys;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use serde_json::json;

use super::{EAST, WEST, capability};
use crate::{
    fleet::{
        Fleet,
        impostor::{cluster_uid, tls_secret},
        shop,
    },
    pki::{Authority, Leaf, Side},
    report::{Facts, Figures, Finding, figures},
    tls::{self, Knock},
};

const DOOR_PORT: u16 = 15443;
/// The first lane of what is told apart by SNI.
const SNI_PORT: u16 = 15444;

pub(super) async fn play(fleet: &Fleet<'_>, facts: &mut Facts) -> Result<()> {
    let door = Door::of(fleet, WEST, EAST).await.context("finding west's door")?;
    let name = "a peer's certificate without a right capability opens nothing";
    facts.look("d1", name, door.forged(fleet)).await;
    let name = "certificates that no member's CA signed are refused by TLS";
    facts.look("d2", name, door.strangers(fleet)).await;
    let name = "a peer's certificate with a guessed server name opens nothing";
    facts.look("d3", name, door.guessed()).await;
    Ok(())
}

/// A member's door, and what a certain peer has.
pub(super) struct Door {
    address: SocketAddr,
    name: String,
    ca_pem: String,
    peer: Leaf,
    /// To the cart.
    capability: String,
}

/// One request at a door.
struct Ask<'a> {
    sni: &'a str,
    host: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Door {
    pub(super) async fn of(fleet: &Fleet<'_>, target: &str, caller: &str) -> Result<Self> {
        let world = fleet.world();
        let (there, here) = (world.member(target)?, world.member(caller)?);
        Ok(Self {
            address: (there.gateway_addr().await?, DOOR_PORT).into(),
            name: keys::door_hostname(&cluster_uid(there).await?),
            ca_pem: tls_secret(there, keys::SECRET_CROSSING_CA).await?.cert_pem,
            peer: tls_secret(here, keys::SECRET_EAST_WEST_CLIENT).await?,
            capability: capability(fleet, caller, "cart", target).await?,
        })
    }

    fn right(&self) -> Ask<'_> {
        Ask { sni: &self.name, host: shop::HOST, path: shop::CART, headers: &[] }
    }

    /// A client of the harness checks the door's certificate, so that another name needs a caller who
    /// does not: the name asked for is then all that the door knows.
    async fn knock(&self, ask: &Ask<'_>, certificate: Option<&Leaf>) -> Result<u16> {
        let mut request = Request::get(ask.path).header("host", ask.host);
        for (name, value) in ask.headers {
            request = request.header(*name, *value);
        }
        let request: Request<Empty<Bytes>> = request.body(Empty::new())?;
        let knock =
            Knock { address: self.address, name: ask.sni, ca_pem: &self.ca_pem, certificate };
        Ok(knock.request_unchecked(request).await?.status().as_u16())
    }

    /// With the peer's own certificate and a right capability.
    async fn as_peer(&self) -> Result<u16> {
        let headers = [(keys::HEADER_BACKEND, self.capability.as_str())];
        self.knock(&Ask { headers: &headers, ..self.right() }, Some(&self.peer)).await
    }

    pub(super) async fn is_refused(&self) -> Result<Option<String>> {
        match self.as_peer().await {
            Ok(_) => Ok(None),
            Err(error) => match tls::alert(&error) {
                Some(alert) => Ok(Some(alert)),
                None => Err(error),
            },
        }
    }

    async fn forged(&self, fleet: &Fleet<'_>) -> Result<Finding> {
        let right = self.as_peer().await?;
        let south = keys::door_hostname(&cluster_uid(fleet.world().member("south")?).await?);
        let readiness = keys::PATH_READINESS;
        let backwards: String = self.capability.chars().rev().collect();
        let header = keys::HEADER_BACKEND;
        let shouted = self.capability.to_uppercase();
        let twice = [(header, backwards.as_str()), (header, self.capability.as_str())];
        let asks = [
            self.right(),
            Ask { path: "/", ..self.right() },
            Ask { path: "/shop.cart", ..self.right() },
            Ask { host: "cart.shop.svc.cluster.local", ..self.right() },
            Ask { host: "secret.shop.svc.cluster.local", ..self.right() },
            Ask { sni: "cart.shop.svc.cluster.local", ..self.right() },
            Ask { sni: "shop.example.com", ..self.right() },
            Ask { sni: &south, host: &south, ..self.right() },
            Ask { path: readiness, ..self.right() },
            Ask { path: readiness, host: &self.name, ..self.right() },
            Ask { path: "/.well-known/fairlead/x/../readiness", host: &self.name, ..self.right() },
            Ask { path: "//.well-known/fairlead/readiness", host: &self.name, ..self.right() },
            Ask { path: "/.well-known%2ffairlead%2freadiness", host: &self.name, ..self.right() },
            Ask { headers: &[(header, &backwards)], ..self.right() },
            Ask { headers: &[(header, &shouted)], ..self.right() },
            Ask { headers: &[("x-fairlead-backend", &self.capability)], ..self.right() },
            Ask { headers: &[("fairlead_backend", &self.capability)], ..self.right() },
            Ask { headers: &twice, ..self.right() },
        ];
        let mut more = figures([("with_it", json!(right)), ("forms", json!(asks.len()))]);
        let mut holds = right == 200;
        for (at, ask) in asks.iter().enumerate() {
            let status = match self.knock(ask, Some(&self.peer)).await {
                Ok(status) => status,
                // No listener for such a name: as good as a 404.
                Err(error) if tls::alert(&error).is_some() || is_closed(&error) => continue,
                Err(error) => return Err(error).with_context(|| format!("form {at}")),
            };
            // 307: the gateway's own answer to escaped slashes, the path without them.
            if !matches!(status, 307 | 400 | 404 | 421) {
                holds = false;
                more.insert(format!("form {at} {} {}", ask.sni, ask.path), json!(status));
            }
        }
        Ok(Finding::new(holds, more))
    }

    /// At the listener that tells services apart by SNI: the door's own name shows that it lives.
    async fn guessed(&self) -> Result<Finding> {
        let address = SocketAddr::new(self.address.ip(), SNI_PORT);
        let knock = async |sni: &str, certificate: Option<&Leaf>| {
            let request = Request::get(shop::CART).header("host", shop::HOST);
            let request: Request<Empty<Bytes>> = request.body(Empty::new())?;
            let knock = Knock { address, name: sni, ca_pem: &self.ca_pem, certificate };
            Ok::<_, anyhow::Error>(knock.request_unchecked(request).await?.status().as_u16())
        };
        let own = knock(&self.name, Some(&self.peer)).await.context("the door's own name")?;
        let suffix = self.name.strip_prefix("door").context("a door's name")?;
        let label = |text: &str| format!("{text}{suffix}");
        let names = [
            label(&"0".repeat(40)),
            label(&self.capability[..40]),
            label(&self.capability[..63]),
            label("cart"),
            label("cart.shop"),
            label("*"),
            "cart.shop.svc.cluster.local".to_owned(),
            shop::HOST.to_owned(),
        ];
        let mut opened = Vec::new();
        for name in &names {
            match knock(name, Some(&self.peer)).await {
                Ok(status) => opened.push(format!("{name}: {status}")),
                Err(error) if tls::alert(&error).is_some() || is_closed(&error) => {}
                // What is no name of a host cannot even be asked for.
                Err(_) if name.starts_with('*') => {}
                Err(error) => return Err(error).with_context(|| name.clone()),
            }
        }
        let stranger = match knock(&self.name, None).await {
            Ok(status) => format!("let in: {status}"),
            Err(error) => tls::alert(&error).unwrap_or_else(|| format!("no alert: {error:#}")),
        };
        let refused = stranger == "CertificateRequired";
        Ok(Finding::new(
            opened.is_empty() && refused,
            figures([
                ("own_name", json!(own)),
                ("names", json!(names.len())),
                ("opened", json!(opened)),
                ("without_a_certificate", json!(stranger)),
            ]),
        ))
    }

    async fn strangers(&self, fleet: &Fleet<'_>) -> Result<Finding> {
        let uid = cluster_uid(fleet.world().member(EAST)?).await?;
        let name = format!("client.{uid}.fairlead.internal");
        let forger = Authority::new(&format!("fairlead crossing {uid}"))?;
        let same_names = forger.issue(Side::Client, &name, &[], &[&name])?;
        let agent = tls_secret(fleet.world().member(EAST)?, keys::SECRET_AGENT_IDENTITY).await?;
        let leaf_of_a_leaf = signed_by_leaf(&self.peer, &name)?;
        let self_signed = self_signed(&name)?;
        let rows: [(&str, Option<&Leaf>); 5] = [
            ("none", None),
            ("another CA, same names", Some(&same_names)),
            ("self-signed, same names", Some(&self_signed)),
            ("the agent's, for the hub", Some(&agent)),
            ("signed by a member's leaf", Some(&leaf_of_a_leaf)),
        ];
        let mut more = Figures::new();
        let mut holds = true;
        for (what, certificate) in rows {
            let headers = [(keys::HEADER_BACKEND, self.capability.as_str())];
            let ask = Ask { headers: &headers, ..self.right() };
            let told = match self.knock(&ask, certificate).await {
                Ok(status) => {
                    holds = false;
                    format!("let in: {status}")
                }
                Err(error) => match tls::alert(&error) {
                    Some(alert) => alert,
                    None => {
                        holds = false;
                        format!("no alert: {error:#}")
                    }
                },
            };
            more.insert(what.into(), json!(told));
        }
        Ok(Finding::new(holds, more))
    }

    /// Opens a connection as the peer and keeps it.
    pub(super) async fn stay(&self) -> Result<Kept> {
        let knock = Knock {
            address: self.address,
            name: &self.name,
            ca_pem: &self.ca_pem,
            certificate: Some(&self.peer),
        };
        let stream = knock.connect().await?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.context("starting HTTP")?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(Kept { sender, capability: self.capability.clone() })
    }
}

/// The other side hung up without a word of TLS.
fn is_closed(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
    };
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    error.chain().filter_map(kind).any(|kind| matches!(kind, ConnectionReset | UnexpectedEof))
}

/// A connection to a door that was opened in time.
pub(super) struct Kept {
    sender: SendRequest<Empty<Bytes>>,
    capability: String,
}

impl Kept {
    /// The status of one more request.
    pub(super) async fn ask(&mut self) -> Result<u16> {
        let request = Request::get(shop::CART)
            .header("host", shop::HOST)
            .header(keys::HEADER_BACKEND, &self.capability)
            .body(Empty::new())?;
        let answer = async {
            self.sender.ready().await?;
            let answer = self.sender.send_request(request).await?;
            let status = answer.status().as_u16();
            answer.into_body().collect().await?;
            anyhow::Ok(status)
        };
        match tokio::time::timeout(Duration::from_secs(2), answer).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer in time"),
        }
    }
}

fn client_params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![SanType::DnsName(name.try_into().context("a name")?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

fn self_signed(name: &str) -> Result<Leaf> {
    let key = KeyPair::generate().context("making a key")?;
    let cert = client_params(name)?.self_signed(&key).context("signing")?;
    Ok(Leaf { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

/// A member's leaf plays an authority, which it is not.
fn signed_by_leaf(leaf: &Leaf, name: &str) -> Result<Leaf> {
    let leaf_key = KeyPair::from_pem(&leaf.key_pem).context("the leaf's key")?;
    let issuer = Issuer::from_ca_cert_pem(&leaf.cert_pem, leaf_key).context("the leaf")?;
    let key = KeyPair::generate().context("making a key")?;
    let cert = client_params(name)?.signed_by(&key, &issuer).context("signing")?;
    let chain = format!("{}{}", cert.pem(), leaf.cert_pem);
    Ok(Leaf { cert_pem: chain, key_pem: key.serialize_pem() })
}
