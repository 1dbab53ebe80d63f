//! The CustomResourceDefinitions as they are installed.
//!
//! Owns the last polish between what the derive produces and what an API server should get. Never
//! changes which objects are valid for a reason that is not written here. Cannot fail at run time:
//! its input is fixed when the crate is compiled, and the tests walk all of it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::keys;
use crate::{DNSPolicy, MemberCluster, TrafficPolicy};

/// All CustomResourceDefinitions of Fairlead, by name: what `fairlead init` and the chart install.
///
/// Use this, not `K::crd()`: see `polish`.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![polish(MemberCluster::crd()), polish(TrafficPolicy::crd()), polish(DNSPolicy::crd())]
}

/// Labels the definition and takes `nullable` out of its schema.
///
/// The derive marks every `Option` nullable, and an API server keeps a null that is allowed: then
/// `has(self.x)` holds in CEL and no default is filled in. Without the mark a null becomes the
/// default, or is refused with the field's name where there is none.
fn polish(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut json = serde_json::to_value(crd).expect("a definition is plain data");
    drop_nullable(&mut json);
    let mut crd: CustomResourceDefinition =
        serde_json::from_value(json).expect("dropping a key leaves a definition");
    let labels = crd.metadata.labels.get_or_insert_default();
    labels.insert(keys::PART_OF.to_owned(), keys::FAIRLEAD.to_owned());
    crd
}

fn drop_nullable(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // Only the schema keyword is a boolean; a property of that name would be an object.
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            map.values_mut().for_each(drop_nullable);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nullable),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
