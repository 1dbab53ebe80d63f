//! Which hostnames have requests in common. `*.` stands for one or more labels.

/// True when a listener and a route have a hostname in common. None, and no hostnames, mean all.
pub(crate) fn intersects(listener: Option<&str>, route: &[&str]) -> bool {
    let Some(listener) = listener else { return true };
    route.is_empty() || route.iter().any(|name| overlap(listener, name))
}

fn overlap(one: &str, two: &str) -> bool {
    let (one, two) = (one.to_ascii_lowercase(), two.to_ascii_lowercase());
    match (one.strip_prefix('*'), two.strip_prefix('*')) {
        (None, None) => one == two,
        (Some(suffix), None) => covers(suffix, &two),
        (None, Some(suffix)) => covers(suffix, &one),
        (Some(one), Some(two)) => one.ends_with(two) || two.ends_with(one),
    }
}

/// `suffix` begins with a dot.
fn covers(suffix: &str, name: &str) -> bool {
    name.len() > suffix.len() && name.ends_with(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (listener, route, want) in [
            ("a.example.com", "a.example.com", true),
            ("a.example.com", "A.Example.Com", true),
            ("a.example.com", "b.example.com", false),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "a.b.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "aexample.com", false),
            ("a.example.com", "*.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "*.b.example.com", true),
            ("*.example.com", "*.example.org", false),
        ] {
            assert_eq!(intersects(Some(listener), &[route]), want, "{listener} {route}");
        }
    }

    #[test]
    fn nothing_said_is_everything() {
        assert!(intersects(None, &["a.example.com"]) && intersects(Some("a.example.com"), &[]));
    }
}
