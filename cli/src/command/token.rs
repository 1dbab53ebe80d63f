//! `fairlead token`: join tokens, kept hashed in Secrets of the hub's namespace.
//!
//! A token is `ID.SECRET`. Only its hash is stored, so the printed line is the one chance to see it.
//! The hub binds it to the key of its first request and to one cluster; this tool only makes, lists
//! and deletes the Secrets, under the caller's own RBAC.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::{Args, Subcommand};
use fairlead_crds::keys;
use fairlead_model::{Json, MemberId};
use jiff::{SignedDuration, Timestamp};
use rand::RngExt;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::args::Connection;
use crate::cluster::{Cluster, Created, Deleted, config_map, secret};
use crate::failure::Failure;
use crate::install;
use crate::output::{self, Format, columns};
use crate::progress::Steps;

/// Characters of a token's id.
pub(crate) const ID_LEN: usize = 8;
/// Characters of a token's secret: 165 bits.
pub(crate) const SECRET_LEN: usize = 32;
const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Shortest life: less would run out while the agent's image is pulled.
const TTL_MIN: SignedDuration = SignedDuration::from_mins(1);
/// Longest life: a token is for now, not for a drawer.
const TTL_MAX: SignedDuration = SignedDuration::from_hours(24 * 7);

/// Arguments of `token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print the line that joins a cluster with it.
    Create(CreateArgs),
    /// List tokens and what became of them.
    List(ListArgs),
    /// Delete a token, so that nobody can join with it any more.
    Delete(DeleteArgs),
}

const CREATE_HELP: &str = "\
A token works for one cluster: the first that uses it. It is stored as a hash; the printed line is
the only place that has it.

EXAMPLES
  fairlead token create --member eu-1
  fairlead token create --member eu-1 --ttl 2h
  ssh eu-1-admin \"$(fairlead token create --member eu-1)\"
  fairlead token create --member eu-1 -o json | jq -r .token";

#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
struct CreateArgs {
    /// Name of the member that may join with it; without it the first cluster chooses its name.
    #[arg(long, value_name = "NAME")]
    member: Option<MemberId>,
    /// How long it can be used, from 1m to 7d.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = parse_ttl)]
    ttl: SignedDuration,
    /// Address of the hub in the line, where agents need another one than the hub advertises.
    #[arg(long, value_name = "URL", value_parser = install::parse_hub_url)]
    hub: Option<String>,
    /// Form of the output; table is the line alone.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// Ids as `token list` shows them, or whole tokens.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// A token as its owner sees it, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    id: String,
    secret: String,
}

impl Token {
    fn random() -> Self {
        Self { id: random_text(ID_LEN), secret: random_text(SECRET_LEN) }
    }

    /// Reads `ID.SECRET`.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let of_alphabet = |text: &str, len| {
            text.len() == len && text.bytes().all(|byte| ALPHABET.contains(&byte))
        };
        match text.split_once('.') {
            Some((id, secret)) if of_alphabet(id, ID_LEN) && of_alphabet(secret, SECRET_LEN) => {
                Ok(Self { id: id.into(), secret: secret.into() })
            }
            // The text is not repeated: it may be most of a real token.
            _ => Err(format!(
                "a token has {ID_LEN} characters, a dot and {SECRET_LEN} characters of a-z and 0-9; \
                 copy the whole line that `fairlead token create` printed"
            )),
        }
    }

    /// The part that is no secret.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// `ID.SECRET`.
    pub(crate) fn text(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// What is stored in place of the token.
    fn hash(&self) -> String {
        hex(&Sha256::digest(self.text().as_bytes()))
    }
}

fn random_text(len: usize) -> String {
    // The thread's generator is a CSPRNG seeded by the system.
    let mut rng = rand::rng();
    (0..len).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_ttl(text: &str) -> Result<SignedDuration, String> {
    let ttl: SignedDuration =
        text.parse().map_err(|e| format!("{e}; write it as 15m, 2h or 1h30m"))?;
    if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
        return Err("a token lives from 1m to 7d (168h)".into());
    }
    Ok(ttl)
}

/// Runs the subcommand.
pub(crate) async fn run(connection: &Connection, args: &TokenArgs) -> Result<(), Failure> {
    let cluster = Cluster::open(connection).await?;
    let namespace = &connection.namespace;
    match &args.command {
        TokenCommand::Create(args) => create(&cluster, namespace, args).await,
        TokenCommand::List(args) => list(&cluster, namespace, args).await,
        TokenCommand::Delete(args) => delete(&cluster, namespace, args).await,
    }
}

/// What a created token is printed as.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    id: String,
    token: String,
    member: Option<MemberId>,
    expires_at: Timestamp,
    hub: String,
    ca_hash: String,
    command: String,
}

async fn create(cluster: &Cluster, namespace: &str, args: &CreateArgs) -> Result<(), Failure> {
    let hub = read_hub(cluster, namespace, args.hub.as_deref()).await?;
    let token = Token::random();
    let expires_at = Timestamp::now()
        .round(jiff::Unit::Second)
        .and_then(|now| now.checked_add(args.ttl))
        .expect("a week from now is a time");
    let object = secret_of(namespace, &token, expires_at, args.member.as_ref());
    if cluster.create(&object).await? == Created::Before {
        // 36^8 ids: nobody will see this, but a token must never be half of another one.
        return Err(Failure::failed("cannot create the token", "its id is taken").next("try again"));
    }
    let line = line_of(&token, expires_at, args.member.clone(), hub);
    output::show(args.output, &line, || line.command.clone());
    if args.output == Format::Table {
        let member =
            if line.member.is_none() { "; put the cluster's name in place of NAME" } else { "" };
        Steps::for_stderr().say(format!(
            "run this line with the kubeconfig of the cluster that joins, before {}{member}",
            line.expires_at.strftime("%H:%M:%S UTC"),
        ));
    }
    Ok(())
}

/// What agents need to know of the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hub {
    address: String,
    ca_hash: String,
}

async fn read_hub(
    cluster: &Cluster,
    namespace: &str,
    address: Option<&str>,
) -> Result<Hub, Failure> {
    let name = keys::CONFIG_MAP_HUB;
    let what = format!("cannot make a token: ConfigMap {namespace}/{name}");
    let Some(map) = cluster.get(&config_map(), namespace, name).await? else {
        return Err(Failure::failed(what, "not found; the hub writes it when it starts").next(
            "use the hub's --kubeconfig or --context; install a hub with `fairlead init`; if it was \
             installed already, see `fairlead status`",
        ));
    };
    let text = |key: &str| map["data"][key].as_str().unwrap_or("").to_owned();
    let hub = Hub {
        address: address.map_or_else(|| text("address"), str::to_owned),
        ca_hash: text("ca-hash"),
    };
    if hub.address.is_empty() {
        return Err(Failure::failed(
            what,
            "it has no address: the hub does not know how agents reach it",
        )
        .next("run `fairlead init --advertise https://HOST:PORT`, or give --hub here"));
    }
    if hub.ca_hash.is_empty() {
        return Err(
            Failure::failed(what, "it has no ca-hash").next("restart the hub, which writes it")
        );
    }
    Ok(hub)
}

fn secret_of(
    namespace: &str,
    token: &Token,
    expires_at: Timestamp,
    member: Option<&MemberId>,
) -> Json {
    let mut data = BTreeMap::from([
        ("hash", token.hash()),
        ("expires-at", expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    ]);
    if let Some(member) = member {
        data.insert("member", member.to_string());
    }
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": format!("{}{}", keys::JOIN_TOKEN_PREFIX, token.id),
            "namespace": namespace,
            "labels": {
                keys::LABEL_TOKEN: "true",
                keys::PART_OF: keys::FAIRLEAD,
                keys::MANAGED_BY: keys::MANAGED_BY_CLI,
            },
        },
        "type": keys::SECRET_TYPE_JOIN_TOKEN,
        "stringData": data,
    })
}

fn line_of(token: &Token, expires_at: Timestamp, member: Option<MemberId>, hub: Hub) -> Line {
    let name = member.as_ref().map_or("NAME", MemberId::as_str);
    let (text, Hub { address, ca_hash }) = (token.text(), hub);
    let command =
        format!("fairlead join --hub {address} --token {text} --ca-hash {ca_hash} --member {name}");
    Line { id: token.id.clone(), token: text, member, expires_at, hub: address, ca_hash, command }
}

/// A stored token as `token list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    id: String,
    member: Option<String>,
    expires_at: Option<Timestamp>,
    state: State,
    used_by: Option<String>,
}

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum State {
    /// Nobody showed it yet.
    Unused,
    /// A cluster joined with it.
    Used,
    /// Too old, or its time cannot be read.
    Expired,
}

async fn list(cluster: &Cluster, namespace: &str, args: &ListArgs) -> Result<(), Failure> {
    let selector = format!("{}=true", keys::LABEL_TOKEN);
    let secrets = cluster.list(&secret(), namespace, &selector).await?.unwrap_or_default();
    let now = Timestamp::now();
    let mut tokens: Vec<Listed> = secrets.iter().filter_map(|s| listed(s, now)).collect();
    tokens.sort_by(|a, b| (a.expires_at, &a.id).cmp(&(b.expires_at, &b.id)));
    output::show(args.output, &tokens, || table(&tokens, now));
    Ok(())
}

fn listed(secret: &Json, now: Timestamp) -> Option<Listed> {
    let id = secret["metadata"]["name"].as_str()?.strip_prefix(keys::JOIN_TOKEN_PREFIX)?.to_owned();
    let data = |key: &str| {
        let bytes = BASE64_STANDARD.decode(secret["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let expires_at = data("expires-at").and_then(|text| text.parse::<Timestamp>().ok());
    let used_by = data("used-by");
    let state = match (&used_by, expires_at) {
        (Some(_), _) => State::Used,
        (None, Some(at)) if at > now => State::Unused,
        (None, _) => State::Expired,
    };
    Some(Listed { id, member: data("member"), expires_at, state, used_by })
}

fn table(tokens: &[Listed], now: Timestamp) -> String {
    if tokens.is_empty() {
        return "No tokens. Make one with `fairlead token create`.".into();
    }
    let rows = tokens.iter().map(|token| {
        let left = token.expires_at.map(|at| at.duration_since(now).as_millis());
        let left = left.and_then(|ms| u64::try_from(ms).ok()).map(output::span);
        vec![
            token.id.clone(),
            token.member.clone().unwrap_or_else(|| "<any>".into()),
            format!("{:?}", token.state),
            left.unwrap_or_else(|| "-".into()),
            token.used_by.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    columns(&["ID", "MEMBER", "STATE", "EXPIRES IN", "USED BY CLUSTER"], rows.collect())
}

async fn delete(cluster: &Cluster, namespace: &str, args: &DeleteArgs) -> Result<(), Failure> {
    for text in &args.ids {
        // A whole token works too; its secret half is not needed and not shown.
        let id = text.split('.').next().unwrap_or_default();
        let what = format!("cannot delete token {}", fairlead_model::id::printable(id));
        if id.len() != ID_LEN || !id.bytes().all(|byte| ALPHABET.contains(&byte)) {
            return Err(Failure::usage(
                what,
                format!("an id has {ID_LEN} characters of a-z and 0-9"),
            )
            .next("see `fairlead token list`"));
        }
        let name = format!("{}{id}", keys::JOIN_TOKEN_PREFIX);
        if cluster.delete(&secret(), namespace, &name).await? == Deleted::Before {
            return Err(Failure::failed(what, "not found").next("see `fairlead token list`"));
        }
        output::print(&format!("token {id} deleted"));
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_token() -> Token {
        Token::parse("abcdefgh.0123456789abcdef0123456789abcdef").unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_token_is_8_dot_32_of_letters_and_digits() {
        for _ in 0..100 {
            let token = Token::random();
            assert_eq!(Token::parse(&token.text()).unwrap(), token);
        }
        assert_ne!(Token::random(), Token::random());
        let (id, secret) = ("abcdefgh", "0123456789abcdef0123456789abcdef");
        for bad in [
            "",
            "abcdefgh",
            &format!("{id}.{secret}x"),
            &format!("{id}x.{secret}"),
            &format!("ABCDEFGH.{secret}"),
            &format!("{id}.{}", secret.replace('a', "ä")),
        ] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_about_a_token_does_not_repeat_it() {
        let error = Token::parse("abcdefgh.0123456789abcdef0123456789abcde").unwrap_err();
        assert!(!error.contains("0123456789"), "{error}");
    }

    #[test]
    fn the_secret_holds_the_hash_of_the_whole_token_and_never_the_token() {
        let member = MemberId::new("east").unwrap();
        let secret = secret_of("fs", &mk_token(), at("2026-01-02T03:04:05.678Z"), Some(&member));
        assert_eq!(secret["metadata"]["name"], "fairlead-token-abcdefgh");
        assert_eq!(secret["type"], "fairlead.dev/join-token");
        assert_eq!(secret["stringData"]["expires-at"], "2026-01-02T03:04:05Z");
        assert_eq!(secret["stringData"]["member"], "east");
        let hash = hex(&Sha256::digest(b"abcdefgh.0123456789abcdef0123456789abcdef"));
        assert_eq!(secret["stringData"]["hash"], hash);
        assert!(!secret.to_string().contains("0123456789abcdef0123456789abcdef"));
    }

    #[test]
    fn the_line_is_the_documented_one() {
        let hub = Hub { address: "https://hub:8443".into(), ca_hash: "sha256:00".into() };
        let line = line_of(&mk_token(), at("2026-01-02T03:04:05Z"), None, hub);
        assert_eq!(
            line.command,
            "fairlead join --hub https://hub:8443 \
             --token abcdefgh.0123456789abcdef0123456789abcdef --ca-hash sha256:00 --member NAME"
        );
    }

    #[test]
    fn lives_are_bounded() {
        assert_eq!(parse_ttl("15m").unwrap(), SignedDuration::from_mins(15));
        assert_eq!(parse_ttl("1h 30m").unwrap(), SignedDuration::from_mins(90));
        for bad in ["", "x", "10s", "-5m", "200h"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_became_of_a_token_is_told() {
        let now = at("2026-01-02T03:00:00Z");
        let mk = |data: Json| {
            let data: BTreeMap<String, String> = serde_json::from_value(data).unwrap();
            let data: BTreeMap<_, _> =
                data.into_iter().map(|(k, v)| (k, BASE64_STANDARD.encode(v))).collect();
            listed(&json!({"metadata": {"name": "fairlead-token-abcdefgh"}, "data": data}), now)
        };
        let later = "2026-01-02T03:15:00Z";
        assert_eq!(mk(json!({"expires-at": later})).unwrap().state, State::Unused);
        assert_eq!(mk(json!({"expires-at": later, "used-by": "u"})).unwrap().state, State::Used);
        assert_eq!(
            mk(json!({"expires-at": "2026-01-02T02:00:00Z"})).unwrap().state,
            State::Expired
        );
        assert_eq!(mk(json!({"expires-at": "soon"})).unwrap().state, State::Expired);
        let tokens = [mk(json!({"expires-at": later, "member": "east"})).unwrap()];
        assert_eq!(
            table(&tokens, now),
            "ID         MEMBER   STATE    EXPIRES IN   USED BY CLUSTER\n\
             abcdefgh   east     Unused   15m          -"
        );
    }
}
