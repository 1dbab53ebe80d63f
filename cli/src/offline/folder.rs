//! Reads `DIR/hub/*.yaml` and `DIR/MEMBER/*.yaml`.
//!
//! Fails with the file's name where something cannot be read; objects of kinds that do not matter are
//! counted, not refused, so that whole dumps can be given.

use std::path::{Path, PathBuf};

use fairlead_crds::keys;
use fairlead_model::{Json, MemberId};
use fairlead_translate::ingest::member::AgentConfig;

use super::{Folders, MemberFolder};
use crate::failure::Failure;
use crate::yaml;

/// The folder of the hub's objects.
const HUB: &str = "hub";
/// Files of one folder: more is surely not a fleet's configuration.
const FILES_MAX: usize = 10_000;
/// Size of one file in bytes.
const FILE_SIZE_MAX: u64 = 64 << 20;

/// Reads a fleet.
pub(crate) fn read(dir: &Path) -> Result<Folders, Failure> {
    let what = format!("cannot plan from {}", dir.display());
    let mut folders = Folders::default();
    let mut found_hub = false;
    for path in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with('.') {
            continue;
        }
        let objects = objects(&path)?;
        if name == HUB {
            found_hub = true;
            folders.skipped +=
                objects.into_iter().filter(|o| !folders.hub.insert(o.clone())).count();
            continue;
        }
        let id =
            MemberId::new(name).map_err(|e| Failure::usage(&what, e).next("rename the folder"))?;
        let (folder, skipped) = member(&path, objects)?;
        folders.skipped += skipped;
        folders.members.insert(id, folder);
    }
    let next =
        "DIR holds a folder `hub` with the hub's objects and a folder for each member, named as it";
    if !found_hub {
        return Err(Failure::usage(what, "there is no folder `hub` in it").next(next));
    }
    if folders.members.is_empty() {
        return Err(Failure::usage(what, "there is no folder of a member in it").next(next));
    }
    Ok(folders)
}

fn member(path: &Path, objects: Vec<Json>) -> Result<(MemberFolder, usize), Failure> {
    let mut folder = MemberFolder::default();
    let mut skipped = 0;
    for object in objects {
        let name = &object["metadata"]["name"];
        let ours =
            object["kind"] == "ConfigMap" && object["metadata"]["namespace"] == keys::NAMESPACE;
        if ours && name == keys::SECRET_CROSSING_CA {
            folder.ca_pem = object["data"]["ca.crt"].as_str().map(str::to_owned);
        } else if ours && name == keys::CONFIG_MAP_AGENT {
            folder.config = config(path, &object)?;
        } else if !folder.objects.insert(object) {
            skipped += 1;
        }
    }
    Ok((folder, skipped))
}

fn config(path: &Path, map: &Json) -> Result<AgentConfig, Failure> {
    let what = format!(
        "cannot use {} of ConfigMap {} in {}",
        keys::AGENT_CONFIG,
        keys::CONFIG_MAP_AGENT,
        path.display()
    );
    let text = map["data"][keys::AGENT_CONFIG].as_str().unwrap_or("{}");
    let options = serde_saphyr::options! { strict_booleans: true };
    let config: AgentConfig = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Failure::failed(&what, error))?;
    config.validate().map_err(|error| Failure::failed(what, error))?;
    Ok(config)
}

fn objects(folder: &Path) -> Result<Vec<Json>, Failure> {
    let mut objects = Vec::new();
    for path in entries(folder)?.into_iter().filter(|path| is_yaml(path)) {
        let what = || format!("cannot read {}", path.display());
        let size = path.metadata().map_err(|e| Failure::failed(what(), e))?.len();
        if size > FILE_SIZE_MAX {
            return Err(Failure::failed(
                what(),
                format!("it is larger than {} MiB", FILE_SIZE_MAX >> 20),
            ));
        }
        let text = std::fs::read_to_string(&path).map_err(|e| Failure::failed(what(), e))?;
        let found = yaml::read(&path.display().to_string(), &text);
        let found = found.map_err(|e| Failure::failed(what(), e).next("correct the file"))?;
        objects.extend(found.into_iter().map(in_default_namespace));
    }
    Ok(objects)
}

fn is_yaml(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    path.is_file() && matches!(ending, Some("yaml" | "yml" | "json"))
}

/// Files and folders, by name: what a file system gives first must not decide anything.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let what = format!("cannot read folder {}", dir.display());
    let found = std::fs::read_dir(dir).map_err(|e| Failure::failed(&what, e))?;
    let mut paths = Vec::new();
    for entry in found {
        paths.push(entry.map_err(|e| Failure::failed(&what, e))?.path());
        if paths.len() > FILES_MAX {
            return Err(Failure::failed(what, format!("it has more than {FILES_MAX} entries")));
        }
    }
    paths.sort();
    Ok(paths)
}

/// What kubectl would do with an object that names no namespace.
fn in_default_namespace(mut object: Json) -> Json {
    const OF_CLUSTER: [&str; 6] = [
        "MemberCluster",
        "GatewayClass",
        "Namespace",
        "Node",
        "CustomResourceDefinition",
        "PersistentVolume",
    ];
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    if let Some(metadata) = object.get_mut("metadata").and_then(Json::as_object_mut)
        && !OF_CLUSTER.contains(&kind.as_str())
        && !metadata.contains_key("namespace")
    {
        metadata.insert("namespace".into(), "default".into());
    }
    object
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn mk(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    fn refusal(files: &[(&str, &str)]) -> String {
        read(mk(files).path()).unwrap_err().for_people()
    }

    const SERVICE: &str = "kind: Service\napiVersion: v1\nmetadata: {name: a}\n";

    #[test]
    fn a_folder_without_hub_or_members_is_refused() {
        assert!(refusal(&[("east/a.yaml", "")]).contains("no folder `hub`"));
        assert!(refusal(&[("hub/a.yaml", "")]).contains("no folder of a member"));
        assert!(refusal(&[("hub/a.yaml", ""), ("East/a.yaml", "")]).contains("RFC 1123"));
        assert!(read(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_broken_file_is_named() {
        let text = refusal(&[("hub/a.yaml", "a: ["), ("east/a.yaml", "")]);
        assert!(text.contains("hub/a.yaml"), "{text}");
    }

    #[test]
    fn objects_without_namespace_are_in_default_and_other_kinds_are_counted() {
        let pod = "kind: Pod\napiVersion: v1\nmetadata: {name: a}\n";
        let dir = mk(&[("hub/x.txt", "a: ["), ("hub/a.yaml", pod), ("east/a.yaml", SERVICE)]);
        let folders = read(dir.path()).unwrap();
        assert_eq!(folders.skipped, 1);
        let services = &folders.members.values().next().unwrap().objects.services;
        assert_eq!(services.keys().next().unwrap().to_string(), "default/a");
    }

    #[test]
    fn consent_comes_from_the_agents_own_config_map() {
        let map = |text: &str| {
            format!(
                "kind: ConfigMap\napiVersion: v1\nmetadata: {{name: fairlead-agent, namespace: \
                 fairlead-system}}\ndata: {{agent.yaml: '{text}'}}\n"
            )
        };
        let dir = mk(&[("hub/a.yaml", ""), ("east/a.yaml", &map("exportPolicy: All"))]);
        let folders = read(dir.path()).unwrap();
        let config = &folders.members.values().next().unwrap().config;
        assert_ne!(*config, AgentConfig::default());
        let bad = map("exportPolicy: Some");
        assert!(refusal(&[("hub/a.yaml", ""), ("east/a.yaml", &bad)]).contains("agent.yaml"));
    }
}
