//! Fills `${name}` in objects.
//!
//! Objects are parsed first and filled then, so no value can break out of its place. A list element
//! or map entry whose text names a value that is not given goes away, as it does in the chart.

use std::collections::BTreeMap;

use fairlead_model::Json;

/// Values by name; none = not given.
pub(crate) type Values<'a> = BTreeMap<&'static str, Option<&'a str>>;

/// Fills an object.
pub(crate) fn fill(template: &Json, values: &Values<'_>) -> Json {
    filled(template, values).unwrap_or_default()
}

fn filled(template: &Json, values: &Values<'_>) -> Option<Json> {
    Some(match template {
        Json::String(text) => Json::String(fill_text(text, values)?),
        Json::Array(items) => items.iter().filter_map(|item| filled(item, values)).collect(),
        Json::Object(map) => fill_map(map, values),
        Json::Null | Json::Bool(_) | Json::Number(_) => template.clone(),
    })
}

fn fill_map(map: &serde_json::Map<String, Json>, values: &Values<'_>) -> Json {
    let entries = map.iter().filter_map(|(key, value)| Some((key.clone(), filled(value, values)?)));
    Json::Object(entries.collect())
}

fn fill_text(text: &str, values: &Values<'_>) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').expect("templates are ours and tested");
        out.push_str(before);
        out.push_str((*values.get(name).expect("templates name known values only"))?);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_filled_and_what_is_not_given_goes_away() {
        let template = json!({"args": ["run", "--a=${a}", "--b=${b}"], "only": "${b}",
            "both": "${a}/${a}", "n": 1, "price": "5$"});
        let values = Values::from([("a", Some("x")), ("b", None)]);
        let expected = json!({"args": ["run", "--a=x"], "both": "x/x", "n": 1, "price": "5$"});
        assert_eq!(fill(&template, &values), expected);
    }

    #[test]
    fn a_value_stays_in_its_place_whatever_it_holds() {
        let values = Values::from([("a", Some("x\"}\n- b: ${a}"))]);
        assert_eq!(fill(&json!(["${a}"]), &values), json!(["x\"}\n- b: ${a}"]));
    }
}
