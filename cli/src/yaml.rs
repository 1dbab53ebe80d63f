//! YAML in and out.
//!
//! Owns the options that keep YAML and Kubernetes of one mind: `on`, `yes` and `y` are text. Reads
//! several documents per file, as kubectl does. Fails with the file's name and the parser's words.

use fairlead_model::Json;

/// Text that is not YAML.
#[derive(Debug, thiserror::Error)]
#[error("{source_name} is not YAML: {message}")]
pub(crate) struct YamlError {
    source_name: String,
    message: String,
}

/// All documents of a text; empty ones are left out, a `List` counts as its items.
pub(crate) fn read(source_name: &str, text: &str) -> Result<Vec<Json>, YamlError> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Json> =
        serde_saphyr::from_multiple_with_options(text, options).map_err(|error| YamlError {
            source_name: source_name.into(),
            message: error.to_string(),
        })?;
    Ok(documents.into_iter().filter(|d| !d.is_null()).flat_map(items).collect())
}

fn items(document: Json) -> Vec<Json> {
    let is_list = document["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    match document.get("items").and_then(Json::as_array) {
        Some(items) if is_list => items.clone(),
        _ => vec![document],
    }
}

/// One document.
pub(crate) fn write(value: &impl serde::Serialize) -> String {
    // The default writes for YAML 1.1 readers: `on`, `yes` and the like are quoted.
    serde_saphyr::to_string(value).expect("our values have text keys only")
}

/// Several documents, for `kubectl apply -f -`.
pub(crate) fn write_all<'a>(values: impl IntoIterator<Item = &'a Json>) -> String {
    values.into_iter().map(|value| format!("---\n{}\n", write(value).trim_end())).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_that_yaml_1_1_takes_for_booleans_stay_text() {
        assert_eq!(read("a", "[on, yes, y, true]").unwrap(), [json!(["on", "yes", "y", true])]);
        let value =
            json!({"a": "yes", "b": "on", "c": "1", "d": "0x10", "e": "null", "f": "~", "g": ""});
        assert_eq!(read("a", &write(&value)).unwrap(), std::slice::from_ref(&value));
        assert!(write(&value).contains("\"yes\"") || write(&value).contains("'yes'"));
    }

    #[test]
    fn several_documents_and_lists_are_read_and_empty_ones_skipped() {
        let text = "---\na: 1\n---\n---\nkind: ConfigMapList\nitems:\n- b: 2\n- c: 3\n";
        assert_eq!(read("x", text).unwrap(), [json!({"a": 1}), json!({"b": 2}), json!({"c": 3})]);
    }

    #[test]
    fn what_is_written_reads_back_with_multi_line_text() {
        let values = [json!({"pem": "-----BEGIN\nabc\n-----END\n"}), json!({"n": 1})];
        assert_eq!(read("x", &write_all(&values)).unwrap(), values);
    }

    #[test]
    fn an_error_names_the_file() {
        let error = read("hub/a.yaml", "a: [").unwrap_err().to_string();
        assert!(error.starts_with("hub/a.yaml is not YAML"), "{error}");
    }
}
