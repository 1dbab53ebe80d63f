//! `deploy/crds` and the copies in the chart are what the types say, and what API servers take
//! without warnings. `UPDATE_GOLDEN=1 cargo test -p fairlead-crds` rewrites the files.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

const HEADER: &str =
    "# Generated from api/crds. UPDATE_GOLDEN=1 cargo test -p fairlead-crds rewrites it.\n";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// Through a JSON value, whose maps are sorted: the field order of a library's struct is no contract.
fn to_yaml(crd: &CustomResourceDefinition) -> String {
    let mut json = serde_json::to_value(crd).unwrap();
    whole_numbers(&mut json);
    format!("{HEADER}{}", serde_saphyr::to_string(&json).unwrap())
}

/// Bounds are floats in the Rust type; people expect to read 65535, not 65535.0.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(list) => list.iter_mut().for_each(whole_numbers),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().and_then(|n| format!("{n:.0}").parse::<i64>().ok())
            {
                *value = whole.into();
            }
        }
        _ => {}
    }
}

fn assert_generated(folder: &Path) {
    let mut names = BTreeSet::new();
    for crd in fairlead_crds::crds() {
        let name = format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural);
        let path = folder.join(&name);
        let want = to_yaml(&crd);
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(folder).unwrap();
            fs::write(&path, &want).unwrap();
        }
        let have = fs::read_to_string(&path).unwrap_or_default();
        assert!(have == want, "{} is out of date: UPDATE_GOLDEN=1 rewrites it", path.display());
        names.insert(name);
    }
    // Folders hold definitions of others, e.g. those of the Multi-Cluster Services API.
    let there: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(there, names, "only generated files belong in {}", folder.display());
}

#[test]
fn deploy_holds_the_generated_definitions() {
    assert_generated(&deploy().join("crds"));
}

#[test]
fn hub_chart_holds_the_generated_definitions() {
    assert_generated(&deploy().join("chart/hub/crds"));
}

#[test]
fn yaml_reads_back_as_the_same_definition() {
    for crd in fairlead_crds::crds() {
        let read: CustomResourceDefinition = serde_saphyr::from_str_with_options(
            &to_yaml(&crd),
            serde_saphyr::options! { strict_booleans: true },
        )
        .unwrap();
        assert_eq!(read, crd);
    }
}

fn walk(path: &str, value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, value);
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                walk(&format!("{path}.{key}"), inner, visit);
            }
        }
        Value::Array(list) => {
            for (at, inner) in list.iter().enumerate() {
                walk(&format!("{path}[{at}]"), inner, visit);
            }
        }
        _ => {}
    }
}

fn schemas(visit: &mut impl FnMut(&str, &Value)) {
    for crd in fairlead_crds::crds() {
        for version in &crd.spec.versions {
            let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            let path = format!("{}/{}", crd.spec.names.kind, version.name);
            walk(&path, &serde_json::to_value(schema).unwrap(), visit);
        }
    }
}

#[test]
fn integers_have_formats_that_api_servers_know_and_bounds() {
    schemas(&mut |path, schema| {
        if schema["type"] == "integer" {
            let format = schema["format"].as_str().unwrap_or_default();
            assert!(["int32", "int64"].contains(&format), "{path}: format {format:?}");
            assert!(schema["minimum"].is_number(), "{path}: no minimum");
        }
    });
}

#[test]
fn lists_are_bounded_and_say_how_they_merge() {
    schemas(&mut |path, schema| {
        if schema["type"] == "array" {
            assert!(schema["maxItems"].is_number(), "{path}: no maxItems");
            assert!(schema["x-kubernetes-list-type"].is_string(), "{path}: no list type");
        }
    });
}

#[test]
fn strings_and_maps_of_the_spec_are_bounded() {
    schemas(&mut |path, schema| {
        if path.contains(".properties.spec") && schema["type"] == "string" {
            let bounded = schema["maxLength"].is_number() || schema["enum"].is_array();
            assert!(bounded, "{path}: no maxLength");
        }
        if schema["additionalProperties"].is_object() {
            assert!(schema["maxProperties"].is_number(), "{path}: no maxProperties");
        }
    });
}

#[test]
fn every_field_is_described_and_none_is_nullable() {
    schemas(&mut |path, schema| {
        assert!(!schema["nullable"].is_boolean(), "{path} is nullable");
        let Some(fields) = schema["properties"].as_object() else { return };
        for (name, field) in fields {
            let described = field["description"].as_str().is_some_and(|text| !text.is_empty());
            let root = ["metadata", "apiVersion", "kind"].contains(&name.as_str());
            assert!(described || root, "{path}.{name} has no description");
        }
    });
}
