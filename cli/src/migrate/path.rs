//! A path of an Ingress → a match and the filters that its rewrite needs.

use fairlead_model::Json;
use serde_json::json;

use super::annotation::Settings;

/// What a path comes to.
pub(super) struct Found {
    pub(super) path: Json,
    pub(super) filters: Vec<Json>,
    pub(super) remarks: Vec<String>,
}

/// Reads a path.
///
/// # Errors
/// Words for people where the Gateway API cannot say the same.
pub(super) fn read(written: &Json, settings: &Settings) -> Result<Found, String> {
    let path = written["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("/");
    let kind = written["pathType"].as_str().unwrap_or("ImplementationSpecific");
    if !path.starts_with('/') {
        return Err(format!("path {path:?} does not begin with a slash"));
    }
    let is_regex = (settings.use_regex || settings.rewrite.is_some()) && has_regex(path);
    let mut remarks = Vec::new();
    let mut filters = Vec::new();
    if is_regex {
        let found = match &settings.rewrite {
            Some(rewrite) => {
                let (prefix, replacement) = captured(path, rewrite).ok_or_else(|| {
                    format!("path {path:?} with rewrite {rewrite:?} has no counterpart")
                })?;
                filters.push(rewrite_prefix(&replacement));
                remarks.push(format!(
                    "path {path:?} is now the prefix {prefix:?}, which ends at a slash"
                ));
                prefixed(&prefix)
            }
            None => {
                remarks.push(format!(
                    "path {path:?} is a regular expression: it must match the whole path now, and \
                     case matters"
                ));
                json!({"type": "RegularExpression", "value": format!("{path}.*")})
            }
        };
        return Ok(Found { path: found, filters, remarks });
    }
    if kind == "ImplementationSpecific" {
        remarks.push(format!("path {path:?} of type ImplementationSpecific is taken for a prefix"));
    }
    let plain = path.trim_end_matches('*');
    let found =
        if kind == "Exact" { json!({"type": "Exact", "value": path}) } else { prefixed(plain) };
    if let Some(rewrite) = &settings.rewrite {
        if rewrite.contains('$') {
            return Err(format!("rewrite {rewrite:?} of path {path:?} refers to nothing in it"));
        }
        filters.push(rewrite_whole(rewrite));
    } else if settings.strip_path {
        filters.push(rewrite_prefix("/"));
    }
    Ok(Found { path: found, filters, remarks })
}

/// What nobody writes in a plain path.
fn has_regex(path: &str) -> bool {
    path.contains(|c: char| "()[]|^$+?\\".contains(c)) || path.contains(".*")
}

/// A prefix, and what replaces it: `/api(/|$)(.*)` with `/$2`, and the like.
fn captured(path: &str, rewrite: &str) -> Option<(String, String)> {
    const TAILS: [(&str, &str); 8] = [
        ("(/|$)(.*)", "$2"),
        ("(/|$)(.*)$", "$2"),
        ("/?(.*)", "$1"),
        ("/?(.*)$", "$1"),
        ("/(.*)", "$1"),
        ("/(.*)$", "$1"),
        ("(.*)", "$1"),
        ("(/.*)?", "$1"),
    ];
    TAILS.iter().find_map(|(tail, group)| {
        let prefix = path.strip_suffix(tail)?;
        let before = rewrite.strip_suffix(group)?;
        if has_regex(prefix) || before.contains('$') {
            return None;
        }
        let or_root = |text: &str| match text.trim_end_matches('/') {
            "" => "/".to_owned(),
            text => text.to_owned(),
        };
        Some((or_root(prefix), or_root(before)))
    })
}

fn prefixed(path: &str) -> Json {
    let value = match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    };
    json!({"type": "PathPrefix", "value": value})
}

fn rewrite_prefix(to: &str) -> Json {
    json!({"type": "URLRewrite", "urlRewrite": {
        "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": to}}})
}

fn rewrite_whole(to: &str) -> Json {
    json!({"type": "URLRewrite", "urlRewrite": {
        "path": {"type": "ReplaceFullPath", "replaceFullPath": to}}})
}

/// Sends those who ask for the root elsewhere.
pub(super) fn app_root(root: &str) -> Json {
    json!({
        "matches": [{"path": {"type": "Exact", "value": "/"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {
            "path": {"type": "ReplaceFullPath", "replaceFullPath": root}, "statusCode": 302}}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_rewrites_become_prefixes() {
        for (path, rewrite, want) in [
            ("/api(/|$)(.*)", "/$2", Some(("/api", "/"))),
            ("/api/(.*)", "/v1/$1", Some(("/api", "/v1"))),
            ("/(.*)", "/app/$1", Some(("/", "/app"))),
            ("/a[0-9](/|$)(.*)", "/$2", None),
            ("/api/(.*)/x/(.*)", "/$2/$1", None),
        ] {
            let want = want.map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(captured(path, rewrite), want, "{path} {rewrite}");
        }
    }
}
