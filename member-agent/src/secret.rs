//! Secrets of our own namespace: the agent's identity and the certificates of the crossing.
//!
//! Created once, read by name (RBAC allows no list and no watch), changed only by us. A Secret that
//! somebody else changed is judged by what it holds; one that holds nothing useful is made anew.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fairlead_crds::keys;
use fairlead_model::{Json, ObjectId};
use kube::Client;
use serde_json::json;

use crate::api::{self, Force, Resource};

/// Text values of a Secret.
pub type Data = std::collections::BTreeMap<String, String>;

/// Reads and writes Secrets of one namespace.
#[derive(Clone)]
pub struct Secrets {
    client: Client,
    namespace: String,
    resource: Resource,
}

impl Secrets {
    /// Those of our own namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        let resource = Resource {
            group: String::new(),
            version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            plural: "secrets".to_owned(),
        };
        Self { client, namespace: namespace.to_owned(), resource }
    }

    /// The values of a Secret; none = it does not exist. Values that are no text are left out.
    ///
    /// # Errors
    /// kube's.
    pub async fn get(&self, name: &str) -> kube::Result<Option<Data>> {
        let object = api::get_object(&self.client, &self.resource, &self.namespace, name).await?;
        Ok(object.map(|object| data_of(&object)))
    }

    /// Creates a Secret; false = somebody was faster.
    ///
    /// # Errors
    /// kube's.
    pub async fn create(&self, name: &str, kind: &str, data: &Data) -> kube::Result<bool> {
        let object = self.object(name, kind, data);
        match api::create(&self.client, &self.resource, &object).await {
            Ok(_) => Ok(true),
            Err(error) if api::code(&error) == Some(409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sets the values of a Secret that exists or not.
    ///
    /// # Errors
    /// kube's.
    pub async fn set(&self, name: &str, kind: &str, data: &Data) -> kube::Result<()> {
        // Applying creates too, but RBAC gives us patch by name only for those that exist.
        if self.create(name, kind, data).await? {
            return Ok(());
        }
        let object = self.object(name, kind, data);
        let id = ObjectId::new("", "v1", "Secret", &self.namespace, name);
        api::apply(&self.client, &self.resource, &id, &object, Force::Yes).await.map(drop)
    }

    /// A Secret as it is.
    ///
    /// # Errors
    /// kube's.
    pub async fn read(&self, name: &str) -> kube::Result<Option<Json>> {
        api::get_object(&self.client, &self.resource, &self.namespace, name).await
    }

    /// Replaces the values and one annotation of a Secret as it was read; it must not have changed since.
    ///
    /// # Errors
    /// kube's.
    pub async fn replace(
        &self,
        read: &Json,
        data: &Data,
        (key, text): (&str, String),
    ) -> kube::Result<()> {
        let mut object = read.clone();
        object["data"] = encoded(data);
        object["metadata"]["annotations"][key] = text.into();
        // Managed fields of the one before are no business of a replacement.
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        api::replace(&self.client, &self.resource, &object).await.map(drop)
    }

    fn object(&self, name: &str, kind: &str, data: &Data) -> Json {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {keys::MANAGED_BY: keys::FAIRLEAD, keys::PART_OF: keys::FAIRLEAD},
            },
            "type": kind,
            "data": encoded(data),
        })
    }
}

fn encoded(data: &Data) -> Json {
    let encoded = data.iter().map(|(key, value)| (key.clone(), STANDARD.encode(value).into()));
    Json::Object(encoded.collect())
}

/// The text values of a Secret.
pub fn data_of(object: &Json) -> Data {
    let data = object.get("data").and_then(Json::as_object);
    let text = |value: &Json| {
        let bytes = STANDARD.decode(value.as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let values = data.into_iter().flatten();
    values.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_text_are_left_out() {
        let data = data_of(&json!({"data": {"a": "aGk=", "b": "%%%", "c": "/w==", "d": 1}}));
        assert_eq!(data, Data::from([("a".to_owned(), "hi".to_owned())]));
        assert!(data_of(&json!({})).is_empty());
    }
}
