//! A rule of a route: its backends, and the references in its filters.

use fairlead_crds::keys;
use fairlead_model::policy::{Backend, BackendTarget, Mirror, Rule, Spread};
use fairlead_model::{Json, Note, NsName, Reason, RouteKey};

use super::grant::Grants;
use crate::raw;

/// Most backendRefs of a rule, as the Gateway API says.
const BACKENDS_MAX: usize = 16;
/// Greatest weight, as the Gateway API says.
const WEIGHT_MAX: u64 = 1_000_000;

/// Reads the rules of one route.
pub(super) struct RuleReader<'a> {
    pub(super) key: &'a RouteKey,
    pub(super) grants: &'a Grants,
}

/// A reference in a rule.
struct Reference<'a> {
    group: &'a str,
    kind: &'a str,
    name: NsName,
}

impl RuleReader<'_> {
    /// Reads a rule, and takes filters out of it that refer to what they may not.
    ///
    /// # Errors
    /// A note when the rule cannot be read: with a match or a filter missing it would do more than
    /// its user asked for.
    pub(super) fn read(&self, rule: &mut Json, subject: &str) -> Result<(Rule, Vec<Note>), Note> {
        let unreadable = |what: &str| {
            Note::new(
                subject,
                Reason::Unreadable,
                format!("{what} cannot be read; the rule is left out"),
            )
        };
        if !rule.is_object() {
            return Err(unreadable("the rule"));
        }
        for list in ["matches", "filters"] {
            if !is_list_of_objects(rule.get(list)) {
                return Err(unreadable(list));
            }
        }
        let refused = self.refused_auth(rule);
        let written = match rule.get_mut("backendRefs") {
            None | Some(Json::Null) => &mut [][..],
            Some(Json::Array(list)) => list.as_mut_slice(),
            Some(_) => return Err(unreadable("backendRefs")),
        };
        if written.len() > BACKENDS_MAX {
            let message = format!(
                "{} backendRefs are more than {BACKENDS_MAX}; the rule is left out",
                written.len()
            );
            return Err(Note::new(subject, Reason::TooLarge, message));
        }
        let mut notes = Vec::new();
        let mut backends = Vec::new();
        for (at, backend) in written.iter_mut().enumerate() {
            let subject = format!("{subject}.backendRefs[{at}]");
            let read = self.backend(backend, &subject);
            backends.push(match self.refused_auth(backend).or_else(|| refused.clone()) {
                // Without the filter these requests would be let in unasked.
                Some((reason, message)) => Backend {
                    weight: read.weight,
                    target: BackendTarget::Invalid(Note::new(subject.clone(), reason, message)),
                },
                None => read,
            });
            if let Some(filters) = backend.get_mut("filters") {
                self.drop_mirrors(filters, &subject, &mut notes);
            }
        }
        if let Some(filters) = rule.get_mut("filters") {
            self.drop_mirrors(filters, subject, &mut notes);
        }
        let crosses = |backend: &Backend| matches!(backend.target, BackendTarget::Global { .. });
        if rule.get("sessionPersistence").is_some_and(Json::is_object)
            && backends.iter().any(crosses)
        {
            let message = "sessionPersistence holds a session at the member that answers; where that is \
                           not the entry itself, its gateway chooses an endpoint for each request";
            notes.push(Note::new(subject, Reason::UnsupportedFeature, message));
        }
        let mirrors = self.mirrors(rule);
        Ok((Rule { backends, spread: Spread::default(), mirrors }, notes))
    }

    /// ServiceImports that get copies, from the filters of the rule and then of its backends.
    fn mirrors(&self, rule: &Json) -> Vec<Mirror> {
        let backends = raw::list(rule, "/backendRefs");
        let filters = std::iter::once(rule).chain(backends).flat_map(|o| raw::list(o, "/filters"));
        let mut mirrors = Vec::new();
        for written in filters.filter_map(|f| f.pointer("/requestMirror/backendRef")) {
            let Some(Reference { group, kind, name }) = self.reference(written) else { continue };
            let is_import = group == keys::MCS_GROUP && kind == "ServiceImport";
            let Some(port) = raw::port(written, "port").filter(|_| is_import) else { continue };
            let mirror = Mirror { service: name, port };
            if !mirrors.contains(&mirror) {
                mirrors.push(mirror);
            }
        }
        mirrors
    }

    fn backend(&self, written: &Json, subject: &str) -> Backend {
        let weight = match written.get("weight") {
            None | Some(Json::Null) => Some(1),
            Some(weight) => weight.as_u64().filter(|weight| *weight <= WEIGHT_MAX),
        };
        let Some(weight) = weight.and_then(|weight| u32::try_from(weight).ok()) else {
            let note =
                Note::new(subject, Reason::Unreadable, "its weight is no number of 0 to 1000000");
            return Backend { weight: 1, target: BackendTarget::Invalid(note) };
        };
        let target = self.target(written).unwrap_or_else(|(reason, message)| {
            BackendTarget::Invalid(Note::new(subject, reason, message))
        });
        Backend { weight, target }
    }

    fn target(&self, written: &Json) -> Result<BackendTarget, (Reason, String)> {
        let Some(reference) = self.reference(written) else {
            return Err((Reason::Unreadable, "it has no name".to_owned()));
        };
        let Reference { group, kind, name } = &reference;
        let is_import = *group == keys::MCS_GROUP && *kind == "ServiceImport";
        let is_service = group.is_empty() && *kind == "Service";
        if !is_import && !is_service {
            let (group, kind) =
                (fairlead_model::id::printable(group), fairlead_model::id::printable(kind));
            let message =
                format!("{kind} of group {group:?} is neither a ServiceImport nor a Service");
            return Err((Reason::InvalidKind, message));
        }
        self.check_permitted(&reference)?;
        let Some(port) = raw::port(written, "port") else {
            return Err((
                Reason::UnsupportedValue,
                format!("{kind} {name} is named without a port"),
            ));
        };
        Ok(if is_import {
            BackendTarget::Global { service: name.clone(), port }
        } else {
            BackendTarget::Own
        })
    }

    fn reference<'a>(&self, written: &'a Json) -> Option<Reference<'a>> {
        let text = |name: &str| written.get(name).and_then(Json::as_str);
        let namespace = raw::field(written, "namespace").unwrap_or(&self.key.name.namespace);
        Some(Reference {
            group: text("group").unwrap_or_default(),
            kind: text("kind").unwrap_or("Service"),
            name: NsName::new(namespace, raw::field(written, "name")?),
        })
    }

    fn check_permitted(&self, reference: &Reference<'_>) -> Result<(), (Reason, String)> {
        let Reference { group, kind, name } = reference;
        let foreign = name.namespace != self.key.name.namespace;
        if foreign && &*name.namespace == keys::NAMESPACE {
            // There stand the doors to other members; the way to them is a ServiceImport.
            let message = format!("namespace {} is Fairlead's own", keys::NAMESPACE);
            return Err((Reason::RefNotPermitted, message));
        }
        if self.grants.permits(self.key, group, kind, name) {
            return Ok(());
        }
        let message = format!(
            "{kind} {name} is in another namespace; a ReferenceGrant there must name {}s of namespace {}",
            self.key.kind, self.key.name.namespace
        );
        Err((Reason::RefNotPermitted, message))
    }

    /// Why the service that is asked whether requests may pass must not be asked.
    fn refused_auth(&self, holder: &Json) -> Option<(Reason, String)> {
        let filters = raw::list(holder, "/filters").iter();
        let asked = filters.filter_map(|filter| filter.pointer("/externalAuth/backendRef"));
        asked.filter_map(|written| self.reference(written)).find_map(|reference| {
            let (reason, message) = self.check_permitted(&reference).err()?;
            Some((reason, format!("externalAuth: {message}")))
        })
    }

    /// A copy of a request must not go where its route may not refer to.
    fn drop_mirrors(&self, filters: &mut Json, subject: &str, notes: &mut Vec<Note>) {
        let Some(list) = filters.as_array_mut() else { return };
        list.retain(|filter| {
            let Some(written) = filter.pointer("/requestMirror/backendRef") else { return true };
            let permitted = match self.reference(written) {
                Some(reference) => self.check_permitted(&reference),
                None => Ok(()), // Without a name it leads nowhere; the member's gateway says so.
            };
            let Err((reason, message)) = permitted else { return true };
            notes.push(Note::new(subject, reason, format!("not mirrored: {message}")));
            false
        });
    }
}

fn is_list_of_objects(value: Option<&Json>) -> bool {
    match value {
        None | Some(Json::Null) => true,
        Some(Json::Array(list)) => list.iter().all(Json::is_object),
        Some(_) => false,
    }
}
