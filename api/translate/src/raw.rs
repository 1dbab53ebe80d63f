//! Reading raw objects without ever failing: a value of another type is as good as absent.
//!
//! Owns access by path and the bounds of text that ends up in messages.

use std::collections::BTreeMap;

use fairlead_model::{Json, NsName};

/// Longest text of a foreign object that is passed on in a message.
pub(crate) const MESSAGE_LEN_MAX: usize = 1_024;

/// Text at a JSON pointer.
pub(crate) fn text<'a>(object: &'a Json, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer)?.as_str()
}

/// Non-empty text of a field.
pub(crate) fn field<'a>(object: &'a Json, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// List at a JSON pointer, empty when there is none.
pub(crate) fn list<'a>(object: &'a Json, pointer: &str) -> &'a [Json] {
    object.pointer(pointer).and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// A port number of a field: 1 to 65535.
pub(crate) fn port(object: &Json, name: &str) -> Option<u16> {
    let number = object.get(name)?.as_u64()?;
    u16::try_from(number).ok().filter(|port| *port > 0)
}

/// Text values of a map such as labels.
pub(crate) fn texts(object: &Json, pointer: &str) -> BTreeMap<String, String> {
    let map = object.pointer(pointer).and_then(Json::as_object);
    let text = |(key, value): (&String, &Json)| Some((key.clone(), value.as_str()?.to_owned()));
    map.map(|map| map.iter().filter_map(text).collect()).unwrap_or_default()
}

/// The value of an annotation.
pub(crate) fn annotation<'a>(object: &'a Json, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}

/// The value of a label.
pub(crate) fn label<'a>(object: &'a Json, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/labels")?.get(key)?.as_str()
}

/// True for an object that Fairlead wrote.
pub(crate) fn is_ours(object: &Json) -> bool {
    use fairlead_crds::keys;
    label(object, keys::MANAGED_BY) == Some(keys::FAIRLEAD)
}

/// `metadata.name`.
pub(crate) fn name(object: &Json) -> Option<&str> {
    text(object, "/metadata/name").filter(|name| !name.is_empty())
}

/// `metadata.namespace` and `metadata.name`.
pub(crate) fn ns_name(object: &Json) -> Option<NsName> {
    let namespace = text(object, "/metadata/namespace").filter(|ns| !ns.is_empty())?;
    Some(NsName::new(namespace, name(object)?))
}

/// `metadata.generation`; 0 when it has none.
pub(crate) fn generation(object: &Json) -> i64 {
    object.pointer("/metadata/generation").and_then(Json::as_i64).unwrap_or_default()
}

/// True for an object that is on its way out.
pub(crate) fn is_deleting(object: &Json) -> bool {
    text(object, "/metadata/deletionTimestamp").is_some()
}

/// `metadata.creationTimestamp`; the beginning of time when it cannot be read.
pub(crate) fn created_at(object: &Json) -> fairlead_model::Millis {
    text(object, "/metadata/creationTimestamp").and_then(millis).unwrap_or_default()
}

/// A time in RFC 3339; the beginning of time when it is before that.
pub(crate) fn millis(text: &str) -> Option<fairlead_model::Millis> {
    let stamp: jiff::Timestamp = text.parse().ok()?;
    Some(fairlead_model::Millis(u64::try_from(stamp.as_millisecond()).unwrap_or_default()))
}

/// Foreign text cut to a bound and freed of control characters.
pub(crate) fn bounded(text: &str) -> String {
    let mut out: String = text.chars().filter(|c| !c.is_control()).take(MESSAGE_LEN_MAX).collect();
    if text.chars().nth(MESSAGE_LEN_MAX).is_some() {
        out.push('…');
    }
    out
}

/// A condition that its controller wrote for the object as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition<'a> {
    /// Text after `status`.
    pub(crate) status: &'a str,
    /// CamelCase word.
    pub(crate) reason: &'a str,
    /// For people.
    pub(crate) message: &'a str,
}

impl Condition<'_> {
    /// Yes, no, or not said.
    pub(crate) fn verdict(&self) -> Option<bool> {
        match self.status {
            "True" => Some(true),
            "False" => Some(false),
            _ => None,
        }
    }
}

/// The condition of that type, when it speaks of the object's current generation. A condition that
/// is missing or of an older generation says nothing: Unknown, not False.
pub(crate) fn condition<'a>(
    conditions: &'a [Json],
    kind: &str,
    generation: i64,
) -> Option<Condition<'a>> {
    let found = conditions.iter().find(|c| c.get("type").and_then(Json::as_str) == Some(kind))?;
    let observed = found.get("observedGeneration").and_then(Json::as_i64).unwrap_or_default();
    if observed < generation {
        return None;
    }
    let text = |name: &str| found.get(name).and_then(Json::as_str).unwrap_or_default();
    Some(Condition { status: text("status"), reason: text("reason"), message: text("message") })
}
