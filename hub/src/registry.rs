//! Join tokens and registered members, as the hub cluster's API holds them.
//!
//! Owns reading, binding and registering; each write carries the version that was read, so that two
//! joins at once cannot both win. Never decides ([`fairlead_hub_core::enroll`] does) and never reads
//! a token's secret: only its hash is stored. A trait, so that the agents' port can be tried without
//! an API server.

use std::collections::BTreeMap;

use fairlead_crds::keys;
use fairlead_hub_core::enroll::Token;
use fairlead_model::{ClusterUid, MemberId, Millis};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

/// A token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredToken {
    /// What decides.
    pub token: Token,
    /// SHA-256 of the whole token text, hex.
    pub hash: String,
    /// Version of its Secret.
    pub version: String,
}

/// A registered member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registered {
    /// The cluster that owns the name.
    pub uid: Option<ClusterUid>,
    /// Version of its MemberCluster.
    pub version: String,
}

/// What a new MemberCluster says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMember {
    /// Name.
    pub member: MemberId,
    /// Cluster.
    pub uid: ClusterUid,
    /// Region; empty = not said.
    pub region: String,
    /// Zone; empty = not said.
    pub zone: String,
    /// Gateway class; empty = not said.
    pub gateway_class: String,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is done.
    Done,
    /// Somebody else was faster: read again and decide again.
    Conflict,
}

/// Why the registry did not do it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The API server did not.
    #[error("{operation} failed")]
    Api {
        /// What was tried.
        operation: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server refused what the cluster said of itself.
    #[error("the MemberCluster was refused: {0}")]
    Invalid(String),
}

fn api(operation: &'static str) -> impl FnOnce(kube::Error) -> RegistryError {
    move |source| RegistryError::Api { operation, source: Box::new(source) }
}

/// Join tokens and registered members.
#[tonic::async_trait]
pub trait Registry: Send + Sync + 'static {
    /// A token by its id.
    async fn token(&self, id: &str) -> Result<Option<StoredToken>, RegistryError>;
    /// Binds a token to the key of its first request.
    async fn bind_token(
        &self,
        token: &StoredToken,
        key_hash: &str,
        uid: &ClusterUid,
    ) -> Result<Written, RegistryError>;
    /// All registered members.
    async fn members(&self) -> Result<BTreeMap<MemberId, Registered>, RegistryError>;
    /// One registered member, read from its source.
    async fn member(&self, member: &MemberId) -> Result<Option<Registered>, RegistryError>;
    /// Registers a member.
    async fn create_member(&self, member: &NewMember) -> Result<Written, RegistryError>;
    /// Writes its cluster into a MemberCluster that was made by hand.
    async fn claim_member(
        &self,
        member: &NewMember,
        registered: &Registered,
    ) -> Result<Written, RegistryError>;
}

/// The registry in the hub cluster's API.
#[derive(Clone)]
pub struct KubeRegistry {
    secrets: Api<Secret>,
    members: Api<DynamicObject>,
}

impl KubeRegistry {
    /// The registry of this cluster; tokens are in `namespace`.
    pub fn new(client: &Client, namespace: &str) -> Self {
        let kind = GroupVersionKind::gvk(keys::GROUP, keys::VERSION, "MemberCluster");
        let resource = ApiResource::from_gvk_with_plural(&kind, "memberclusters");
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            members: Api::all_with(client.clone(), &resource),
        }
    }
}

#[tonic::async_trait]
impl Registry for KubeRegistry {
    async fn token(&self, id: &str) -> Result<Option<StoredToken>, RegistryError> {
        let name = format!("{}{id}", keys::JOIN_TOKEN_PREFIX);
        let secret = self.secrets.get_opt(&name).await.map_err(api("reading the join token"))?;
        Ok(secret.and_then(|secret| read_token(id, &secret)))
    }

    async fn bind_token(
        &self,
        token: &StoredToken,
        key_hash: &str,
        uid: &ClusterUid,
    ) -> Result<Written, RegistryError> {
        let name = format!("{}{}", keys::JOIN_TOKEN_PREFIX, token.token.id);
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let patch = json!({
            // The version makes two first requests at once one winner and one conflict.
            "metadata": {"resourceVersion": token.version},
            "data": {"bound-key": bytes(key_hash), "used-by": bytes(uid.as_str())},
        });
        let patched = self.secrets.patch(&name, &params(), &Patch::Merge(&patch)).await;
        written(patched, "binding the join token")
    }

    async fn members(&self) -> Result<BTreeMap<MemberId, Registered>, RegistryError> {
        let list = self.members.list(&Default::default()).await;
        let list = list.map_err(api("listing MemberClusters"))?;
        let member = |object: &DynamicObject| {
            Some((MemberId::new(&object.name_any()).ok()?, read_member(object)))
        };
        Ok(list.iter().filter_map(member).collect())
    }

    async fn member(&self, member: &MemberId) -> Result<Option<Registered>, RegistryError> {
        let object = self.members.get_opt(member.as_str()).await;
        let object = object.map_err(api("reading the MemberCluster"))?;
        Ok(object.as_ref().map(read_member))
    }

    async fn create_member(&self, member: &NewMember) -> Result<Written, RegistryError> {
        let object: DynamicObject = serde_json::from_value(member_object(member))
            .expect("the object has apiVersion, kind and metadata");
        let params = PostParams {
            field_manager: Some(keys::FIELD_MANAGER_HUB.to_owned()),
            ..PostParams::default()
        };
        written(self.members.create(&params, &object).await, "creating the MemberCluster")
    }

    async fn claim_member(
        &self,
        member: &NewMember,
        registered: &Registered,
    ) -> Result<Written, RegistryError> {
        let patch = json!({
            "metadata": {"resourceVersion": registered.version},
            "spec": {"clusterUID": member.uid},
        });
        let name = member.member.as_str();
        let patched = self.members.patch(name, &params(), &Patch::Merge(&patch)).await;
        written(patched, "claiming the MemberCluster")
    }
}

fn params() -> PatchParams {
    PatchParams {
        field_manager: Some(keys::FIELD_MANAGER_HUB.to_owned()),
        ..PatchParams::default()
    }
}

fn written<T>(
    result: Result<T, kube::Error>,
    operation: &'static str,
) -> Result<Written, RegistryError> {
    match result {
        Ok(_) => Ok(Written::Done),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
            Ok(Written::Conflict)
        }
        Err(kube::Error::Api(status)) if status.is_invalid() => {
            Err(RegistryError::Invalid(status.message.clone()))
        }
        Err(error) => Err(api(operation)(error)),
    }
}

fn member_object(member: &NewMember) -> serde_json::Value {
    let mut spec = json!({"clusterUID": member.uid});
    for (field, value) in [("region", &member.region), ("zone", &member.zone)] {
        if !value.is_empty() {
            spec["location"][field] = json!(value);
        }
    }
    if !member.gateway_class.is_empty() {
        spec["gatewayClassName"] = json!(member.gateway_class);
    }
    json!({
        "apiVersion": keys::API_VERSION,
        "kind": "MemberCluster",
        "metadata": {"name": member.member},
        "spec": spec,
    })
}

fn read_member(object: &DynamicObject) -> Registered {
    let uid = object.data.pointer("/spec/clusterUID").and_then(|uid| uid.as_str());
    Registered {
        uid: uid.and_then(|uid| ClusterUid::new(uid).ok()),
        version: object.resource_version().unwrap_or_default(),
    }
}

/// A Secret that is not a token of ours, or lacks a hash or an end, opens nothing.
fn read_token(id: &str, secret: &Secret) -> Option<StoredToken> {
    if secret.type_.as_deref() != Some(keys::SECRET_TYPE_JOIN_TOKEN) {
        return None;
    }
    let text = |key: &str| {
        let bytes = &secret.data.as_ref()?.get(key)?.0;
        let text = std::str::from_utf8(bytes).ok()?.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    let expires_at: Timestamp = text("expires-at")?.parse().ok()?;
    let token = Token {
        id: id.to_owned(),
        expires_at: Millis(u64::try_from(expires_at.as_millisecond()).unwrap_or(0)),
        member: text("member"),
        bound_key: text("bound-key"),
    };
    let version = secret.resource_version().unwrap_or_default();
    Some(StoredToken { token, hash: text("hash")?, version })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk_secret(data: &[(&str, &str)]) -> Secret {
        let bytes = |(key, value): &(&str, &str)| {
            ((*key).to_owned(), ByteString(value.as_bytes().to_vec()))
        };
        Secret {
            type_: Some(keys::SECRET_TYPE_JOIN_TOKEN.to_owned()),
            data: Some(data.iter().map(bytes).collect()),
            ..Secret::default()
        }
    }

    const GOOD: [(&str, &str); 2] = [("hash", "abc"), ("expires-at", "2030-01-01T00:00:00Z")];

    #[test]
    fn a_token_reads_from_its_secret() {
        let mut data = GOOD.to_vec();
        data.extend([("member", "east"), ("bound-key", "k1")]);
        let stored = read_token("abcdefgh", &mk_secret(&data)).unwrap();
        assert_eq!(stored.hash, "abc");
        assert_eq!(stored.token.expires_at, Millis(1_893_456_000_000));
        assert_eq!(stored.token.member.as_deref(), Some("east"));
        assert_eq!(stored.token.bound_key.as_deref(), Some("k1"));
    }

    #[test]
    fn a_secret_that_is_no_whole_token_opens_nothing() {
        let opaque = Secret { type_: Some("Opaque".into()), ..mk_secret(&GOOD) };
        let bad_time = mk_secret(&[("hash", "abc"), ("expires-at", "tomorrow")]);
        for secret in
            [opaque, bad_time, mk_secret(&GOOD[..1]), mk_secret(&GOOD[1..]), mk_secret(&[])]
        {
            assert_eq!(read_token("abcdefgh", &secret), None);
        }
        assert!(read_token("abcdefgh", &mk_secret(&GOOD)).is_some());
    }

    #[test]
    fn a_new_member_says_only_what_is_known() {
        let mut member = NewMember {
            member: MemberId::new("east").unwrap(),
            uid: ClusterUid::new("u1").unwrap(),
            region: String::new(),
            zone: String::new(),
            gateway_class: String::new(),
        };
        assert_eq!(member_object(&member)["spec"], json!({"clusterUID": "u1"}));
        member.zone = "z1".into();
        member.gateway_class = "eg".into();
        let want =
            json!({"clusterUID": "u1", "location": {"zone": "z1"}, "gatewayClassName": "eg"});
        assert_eq!(member_object(&member)["spec"], want);
    }
}
