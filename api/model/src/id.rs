//! Names of things: members, clusters, namespaced objects, routes, rendered objects.
//!
//! Ids that come from outside are validated here once; after that they are plain values with a
//! total order, so that every tie in the project can end at an id.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest member name: leaves room for the prefixes of derived object names (63 in all).
pub const MEMBER_ID_LEN_MAX: usize = 50;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a lower-case RFC 1123 label of the allowed length.
    #[error(
        "{what} {value:?} is not an RFC 1123 label of 1 to {max} characters \
         (lower-case letters, digits and '-', first and last not '-')"
    )]
    Label {
        /// What the value was meant to be.
        what: &'static str,
        /// The value, cut to a printable length.
        value: String,
        /// Longest allowed length.
        max: usize,
    },
    /// Empty, too long, or with characters that no uid has.
    #[error("cluster UID {value:?} must have 1 to 64 characters of [0-9A-Za-z._-]")]
    Uid {
        /// The value, cut to a printable length.
        value: String,
    },
    /// Not of the form that the type prints.
    #[error("{what} {value:?} is not of the form {form}")]
    Form {
        /// What the value was meant to be.
        what: &'static str,
        /// The value, cut to a printable length.
        value: String,
        /// The form that would have been right.
        form: &'static str,
    },
}

/// True for a lower-case RFC 1123 label of at most `max` bytes.
pub fn is_label(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    !bytes.is_empty()
        && bytes.len() <= max
        && bytes.iter().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// Cuts foreign text for messages: hostile input must not fill a status or a log.
pub fn printable(text: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let mut out: String = text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect();
    if text.chars().count() > SHOWN_MAX {
        out.push('…');
    }
    out
}

/// The name of a member cluster: the name of its `MemberCluster`, an RFC 1123 label of at most 50.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberId(Arc<str>);

impl MemberId {
    /// Validates a member name.
    ///
    /// # Errors
    /// [`IdError::Label`] when it is not an RFC 1123 label of at most [`MEMBER_ID_LEN_MAX`].
    pub fn new(text: &str) -> Result<Self, IdError> {
        if is_label(text, MEMBER_ID_LEN_MAX) {
            return Ok(Self(text.into()));
        }
        Err(IdError::Label { what: "member name", value: printable(text), max: MEMBER_ID_LEN_MAX })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The UID of a cluster: that of its `kube-system` namespace. It outlives names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterUid(Arc<str>);

impl ClusterUid {
    /// Validates a cluster UID.
    ///
    /// # Errors
    /// [`IdError::Uid`] when it is empty, longer than 64, or has other characters than a UID.
    pub fn new(text: &str) -> Result<Self, IdError> {
        let fits = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
        if (1..=64).contains(&text.len()) && text.as_bytes().iter().all(fits) {
            return Ok(Self(text.into()));
        }
        Err(IdError::Uid { value: printable(text) })
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_id {
    ($name:ident) => {
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(&text)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_id!(MemberId);
text_id!(ClusterUid);

/// A port of a Service, 1 to 65535.
pub type ServicePort = u16;

/// `namespace/name` of a namespaced object. Its parts come from an API server, which validated them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NsName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl NsName {
    /// Puts the two parts together.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for NsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
impl fmt::Debug for NsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl FromStr for NsName {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.split_once('/') {
            Some((ns, name)) if !ns.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::new(ns, name))
            }
            _ => Err(IdError::Form {
                what: "object name",
                value: printable(text),
                form: "NAMESPACE/NAME",
            }),
        }
    }
}
impl TryFrom<String> for NsName {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}
impl From<NsName> for String {
    fn from(n: NsName) -> String {
        n.to_string()
    }
}

/// The Gateway API route kinds. One model serves them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteKind {
    /// HTTPRoute.
    HTTPRoute,
    /// GRPCRoute.
    GRPCRoute,
    /// TLSRoute.
    TLSRoute,
    /// TCPRoute.
    TCPRoute,
    /// UDPRoute.
    UDPRoute,
}

impl RouteKind {
    /// Every kind, in order.
    pub const ALL: [RouteKind; 5] =
        [Self::HTTPRoute, Self::GRPCRoute, Self::TLSRoute, Self::TCPRoute, Self::UDPRoute];

    /// The Kubernetes kind.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HTTPRoute => "HTTPRoute",
            Self::GRPCRoute => "GRPCRoute",
            Self::TLSRoute => "TLSRoute",
            Self::TCPRoute => "TCPRoute",
            Self::UDPRoute => "UDPRoute",
        }
    }

    /// The plural in the API.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::HTTPRoute => "httproutes",
            Self::GRPCRoute => "grpcroutes",
            Self::TLSRoute => "tlsroutes",
            Self::TCPRoute => "tcproutes",
            Self::UDPRoute => "udproutes",
        }
    }

    /// Requests of this kind have headers.
    pub const fn has_headers(self) -> bool {
        matches!(self, Self::HTTPRoute | Self::GRPCRoute)
    }

    /// How traffic of this kind crosses.
    pub const fn way(self) -> Way {
        match self {
            Self::HTTPRoute | Self::GRPCRoute => Way::Header,
            Self::TLSRoute | Self::TCPRoute => Way::Sni,
            Self::UDPRoute => Way::Port,
        }
    }
}

/// How traffic crosses to another member: what tells its service there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Way {
    /// A header of each request.
    Header,
    /// The server name of its TLS connection.
    Sni,
    /// The port that it comes to. Nothing proves who calls.
    Port,
}

impl fmt::Display for RouteKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A route in the hub: `KIND/NAMESPACE/NAME` as text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RouteKey {
    /// Kind.
    pub kind: RouteKind,
    /// Namespace and name.
    pub name: NsName,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}
impl fmt::Debug for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl FromStr for RouteKey {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let form =
            || IdError::Form { what: "route", value: printable(text), form: "KIND/NAMESPACE/NAME" };
        let (kind, name) = text.split_once('/').ok_or_else(form)?;
        let kind = RouteKind::ALL
            .into_iter()
            .find(|k| k.as_str().eq_ignore_ascii_case(kind) || k.plural() == kind)
            .ok_or_else(form)?;
        Ok(Self { kind, name: name.parse().map_err(|_| form())? })
    }
}
impl TryFrom<String> for RouteKey {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}
impl From<RouteKey> for String {
    fn from(r: RouteKey) -> String {
        r.to_string()
    }
}

/// A Kubernetes object that Fairlead renders: `GROUP/VERSION/KIND/NAMESPACE/NAME` as text, with an
/// empty group for core and an empty namespace for cluster-scoped kinds.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectId {
    /// API group, empty for core.
    pub group: Arc<str>,
    /// API version.
    pub version: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
    /// Namespace, empty when cluster-scoped.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectId {
    /// Puts the parts together.
    pub fn new(group: &str, version: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The id of an object as its own JSON tells it.
    ///
    /// # Errors
    /// [`IdError::Form`] when `apiVersion`, `kind` or `metadata.name` is missing or not text.
    pub fn of(object: &crate::Json) -> Result<Self, IdError> {
        let text = |pointer: &str| object.pointer(pointer).and_then(crate::Json::as_str);
        let (Some(api), Some(kind), Some(name)) =
            (text("/apiVersion"), text("/kind"), text("/metadata/name"))
        else {
            return Err(IdError::Form {
                what: "object",
                value: printable(&object.to_string()),
                form: "an object with apiVersion, kind and metadata.name",
            });
        };
        let (group, version) = api.split_once('/').unwrap_or(("", api));
        Ok(Self::new(group, version, kind, text("/metadata/namespace").unwrap_or(""), name))
    }

    /// `apiVersion` as Kubernetes writes it.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            return self.version.to_string();
        }
        format!("{}/{}", self.group, self.version)
    }

    /// `Kind namespace/name` for people.
    pub fn for_people(&self) -> String {
        if self.namespace.is_empty() {
            return format!("{} {}", self.kind, self.name);
        }
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, version, kind, namespace, name } = self;
        write!(f, "{group}/{version}/{kind}/{namespace}/{name}")
    }
}
impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
impl FromStr for ObjectId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [group, version, kind, namespace, name]
                if !version.is_empty() && !kind.is_empty() && !name.is_empty() =>
            {
                Ok(Self::new(group, version, kind, namespace, name))
            }
            _ => Err(IdError::Form {
                what: "object id",
                value: printable(text),
                form: "GROUP/VERSION/KIND/NAMESPACE/NAME",
            }),
        }
    }
}
impl TryFrom<String> for ObjectId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}
impl From<ObjectId> for String {
    fn from(o: ObjectId) -> String {
        o.to_string()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn member_name_is_a_label_of_at_most_50() {
        assert!(MemberId::new("eu-1").is_ok());
        assert!(MemberId::new(&"a".repeat(50)).is_ok());
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(51)] {
            assert!(MemberId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_read_what_they_print() {
        let route: RouteKey = "HTTPRoute/shop/cart".parse().unwrap();
        assert_eq!(route.to_string().parse::<RouteKey>().unwrap(), route);
        assert_eq!("httproute/shop/cart".parse::<RouteKey>().unwrap(), route);
        let core = ObjectId::new("", "v1", "Service", "shop", "cart");
        assert_eq!(core.to_string().parse::<ObjectId>().unwrap(), core);
        assert_eq!(core.api_version(), "v1");
    }

    #[test]
    fn object_id_comes_from_the_object() {
        let object = serde_json::json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "namespace": "b"}});
        assert_eq!(ObjectId::of(&object).unwrap().to_string(), "apps/v1/Deployment/b/a");
        assert!(ObjectId::of(&serde_json::json!({"kind": "X"})).is_err());
    }

    #[test]
    fn hostile_text_is_cut_in_messages() {
        let error = MemberId::new(&"\u{7}x".repeat(10_000)).unwrap_err().to_string();
        assert!(error.len() < 400 && !error.contains('\u{7}'));
    }
}
