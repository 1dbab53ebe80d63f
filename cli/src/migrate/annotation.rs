//! What annotations of common controllers ask for.
//!
//! Three kinds: those that become fields of a route ([`Settings`]), those that need a person (with what
//! does the same today), and those that mean nothing any more. Any other one is listed as unknown.

use fairlead_model::Json;
use serde_json::{Map, json};

use super::Weight;

/// What the annotations of one Ingress ask for.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) rewrite: Option<String>,
    pub(super) use_regex: bool,
    pub(super) strip_path: bool,
    pub(super) app_root: Option<String>,
    pub(super) to_https: ToHttps,
    pub(super) aliases: Vec<String>,
    pub(super) canary: Option<Canary>,
    redirect: Option<Json>,
    upstream_host: Option<String>,
    cors: Option<Map<String, Json>>,
    timeout: Option<String>,
    session: Option<String>,
    extensions: Vec<Json>,
}

/// Who is sent to HTTPS.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToHttps {
    /// Nobody.
    #[default]
    Never,
    /// Clients of hosts with a certificate.
    WithTls,
    /// All clients.
    Always,
}

/// A second Ingress for part of another's requests.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Canary {
    pub(super) weight: Option<u32>,
    pub(super) header: Option<(String, String)>,
}

impl Settings {
    /// Filters of every rule.
    pub(super) fn filters(&self) -> Vec<Json> {
        let mut filters = Vec::new();
        if let Some(redirect) = &self.redirect {
            filters.push(json!({"type": "RequestRedirect", "requestRedirect": redirect}));
            return filters;
        }
        if let Some(host) = &self.upstream_host {
            filters.push(json!({"type": "URLRewrite", "urlRewrite": {"hostname": host}}));
        }
        if let Some(cors) = &self.cors {
            filters.push(json!({"type": "CORS", "cors": cors}));
        }
        filters.extend(self.extensions.iter().cloned());
        filters
    }

    /// Times and sessions of a rule.
    pub(super) fn time(&self, rule: &mut Json) {
        if let Some(timeout) = &self.timeout {
            rule["timeouts"] = json!({"request": timeout});
        }
        if let Some(name) = &self.session {
            rule["sessionPersistence"] = json!({"sessionName": name, "type": "Cookie"});
        }
    }
}

type Told = Vec<(Weight, String)>;

/// Reads the annotations of an Ingress.
pub(super) fn read(annotations: &Map<String, Json>, told: &mut Told) -> Settings {
    let mut settings = Settings::default();
    let is_nginx = annotations.keys().any(|key| key.starts_with(NGINX));
    if is_nginx {
        // Its default.
        settings.to_https = ToHttps::WithTls;
    }
    for (key, value) in annotations {
        let value = value.as_str().unwrap_or_default().trim();
        let known = read_nginx(key, value, annotations, &mut settings, told)
            || read_other(key, value, &mut settings, told)
            || tell(key, value, told);
        if !known {
            told.push((Weight::Person, format!("annotation {key} is not known: {}", short(value))));
        }
    }
    settings
}

const NGINX: &str = "nginx.ingress.kubernetes.io/";

fn is_true(value: &str) -> bool {
    value.eq_ignore_ascii_case("true")
}

fn short(value: &str) -> String {
    let cut: String = value.chars().take(60).collect();
    format!("{cut:?}")
}

fn list(value: &str) -> Vec<String> {
    value.split(',').map(|one| one.trim().to_owned()).filter(|one| !one.is_empty()).collect()
}

fn read_nginx(
    key: &str,
    value: &str,
    all: &Map<String, Json>,
    settings: &mut Settings,
    told: &mut Told,
) -> bool {
    let Some(name) = key.strip_prefix(NGINX) else { return false };
    let other = |name: &str| all.get(&format!("{NGINX}{name}")).and_then(Json::as_str);
    match name {
        "rewrite-target" => settings.rewrite = Some(value.to_owned()),
        "use-regex" => settings.use_regex = is_true(value),
        "app-root" => settings.app_root = Some(value.to_owned()),
        "upstream-vhost" => settings.upstream_host = Some(value.to_owned()),
        "server-alias" => settings.aliases = list(value),
        "ssl-redirect" if !is_true(value) => settings.to_https = ToHttps::Never,
        "ssl-redirect" => {}
        "force-ssl-redirect" if is_true(value) => settings.to_https = ToHttps::Always,
        "force-ssl-redirect" => {}
        "permanent-redirect" => {
            redirect(value, 301, other("permanent-redirect-code"), settings, told);
        }
        "temporal-redirect" => {
            redirect(value, 302, other("temporal-redirect-code"), settings, told);
        }
        "permanent-redirect-code" | "temporal-redirect-code" => {}
        "proxy-read-timeout" | "proxy-send-timeout" => timeout(name, value, settings, told),
        "affinity"
        | "affinity-mode"
        | "session-cookie-name"
        | "session-cookie-max-age"
        | "session-cookie-expires"
        | "session-cookie-path" => session(name, value, settings, told),
        _ if name.starts_with("enable-cors") || name.starts_with("cors-") => {
            cors(name, value, other("enable-cors").is_some_and(is_true), settings, told);
        }
        _ if name.starts_with("canary") => canary(name, value, all, settings, told),
        _ => return false,
    }
    true
}

fn redirect(to: &str, code: u16, other: Option<&str>, settings: &mut Settings, told: &mut Told) {
    let code = other.and_then(|code| code.parse().ok()).unwrap_or(code);
    let code = if [301, 302, 303, 307, 308].contains(&code) { code } else { 302 };
    let Some((scheme, rest)) = to.split_once("://") else {
        told.push((Weight::Person, format!("redirect to {} is no URL", short(to))));
        return;
    };
    let (authority, path) = match rest.split_once('/') {
        Some((authority, path)) => (authority, Some(format!("/{path}"))),
        None => (rest, None),
    };
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok()),
        None => (authority, None),
    };
    if to.contains('$') || host.is_empty() {
        told.push((Weight::Person, format!("redirect to {} has variables", short(to))));
        return;
    }
    let mut redirect = json!({"scheme": scheme, "hostname": host, "statusCode": code});
    if let Some(port) = port {
        redirect["port"] = json!(port);
    }
    if let Some(path) = path {
        redirect["path"] = json!({"type": "ReplaceFullPath", "replaceFullPath": path});
    }
    settings.redirect = Some(redirect);
}

fn timeout(name: &str, value: &str, settings: &mut Settings, told: &mut Told) {
    let Ok(seconds) = value.trim_end_matches('s').parse::<u32>() else {
        told.push((Weight::Person, format!("{name} {} is no number", short(value))));
        return;
    };
    if name == "proxy-read-timeout" {
        settings.timeout = Some(format!("{seconds}s"));
        let message =
            format!("{name} {seconds} s was between two reads; it is for the whole request now");
        told.push((Weight::Differs, message));
    } else {
        told.push((Weight::Dropped, format!("{name}: the timeout of a request covers it")));
    }
}

fn session(name: &str, value: &str, settings: &mut Settings, told: &mut Told) {
    match name {
        "affinity" if value == "cookie" => {
            settings.session.get_or_insert_with(|| "INGRESSCOOKIE".to_owned());
            let message = "affinity by cookie is sessionPersistence now (experimental channel); a session \
                           stays with a member, and behind a door not with one endpoint";
            told.push((Weight::Differs, message.to_owned()));
        }
        "session-cookie-name" => settings.session = Some(value.to_owned()),
        _ => told.push((Weight::Person, format!("{name} {} is not carried over", short(value)))),
    }
}

fn cors(name: &str, value: &str, enabled: bool, settings: &mut Settings, told: &mut Told) {
    if !enabled {
        told.push((Weight::Dropped, format!("{name}: CORS is not enabled")));
        return;
    }
    let cors = settings.cors.get_or_insert_with(|| {
        let mut cors = Map::new();
        cors.insert("allowOrigins".to_owned(), json!(["*"]));
        let methods = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];
        cors.insert("allowMethods".to_owned(), json!(methods));
        cors
    });
    match name {
        "enable-cors" => {}
        "cors-allow-origin" => drop(cors.insert("allowOrigins".into(), json!(list(value)))),
        "cors-allow-methods" => drop(cors.insert("allowMethods".into(), json!(list(value)))),
        "cors-allow-headers" => drop(cors.insert("allowHeaders".into(), json!(list(value)))),
        "cors-expose-headers" => drop(cors.insert("exposeHeaders".into(), json!(list(value)))),
        "cors-allow-credentials" => {
            drop(cors.insert("allowCredentials".into(), json!(is_true(value))));
        }
        "cors-max-age" => {
            let age = value.parse::<u32>().unwrap_or(1_728_000).max(1);
            cors.insert("maxAge".into(), json!(age));
        }
        _ => told.push((Weight::Person, format!("{name} {} is not known", short(value)))),
    }
}

fn canary(
    name: &str,
    value: &str,
    all: &Map<String, Json>,
    settings: &mut Settings,
    told: &mut Told,
) {
    let is_canary = all.get(&format!("{NGINX}canary")).and_then(Json::as_str).is_some_and(is_true);
    if !is_canary {
        told.push((Weight::Dropped, format!("{name}: the Ingress is no canary")));
        return;
    }
    let canary = settings.canary.get_or_insert_with(Canary::default);
    match name {
        "canary" => {}
        "canary-weight" => canary.weight = value.parse().ok(),
        "canary-by-header" => {
            let wanted = canary.header.take().map_or("always".to_owned(), |(_, wanted)| wanted);
            canary.header = Some((value.to_owned(), wanted));
        }
        "canary-by-header-value" => {
            let header = canary.header.take().map(|(header, _)| header).unwrap_or_default();
            canary.header = Some((header, value.to_owned()));
        }
        _ => told.push((Weight::Person, format!("{name} {} has no counterpart", short(value)))),
    }
}

/// Traefik, Kong, Contour, load balancers of clouds: what has a counterpart.
fn read_other(key: &str, value: &str, settings: &mut Settings, told: &mut Told) -> bool {
    match key {
        "konghq.com/strip-path" => settings.strip_path = is_true(value),
        "alb.ingress.kubernetes.io/ssl-redirect" | "konghq.com/https-redirect-status-code" => {
            settings.to_https = ToHttps::Always;
        }
        "ingress.kubernetes.io/force-ssl-redirect"
        | "ingress.kubernetes.io/ssl-redirect"
        | "haproxy.org/ssl-redirect"
        | "traefik.ingress.kubernetes.io/redirect-to-https" => {
            if is_true(value) {
                settings.to_https = ToHttps::Always;
            }
        }
        "projectcontour.io/response-timeout" if value != "infinity" => {
            settings.timeout = Some(value.to_owned());
        }
        "projectcontour.io/response-timeout" => settings.timeout = Some("0s".to_owned()),
        "traefik.ingress.kubernetes.io/router.middlewares" => {
            middlewares(value, settings, told);
        }
        _ => return false,
    }
    true
}

/// `<namespace>-<name>@kubernetescrd`: which dash parts the two is not said, so a person looks.
fn middlewares(value: &str, settings: &mut Settings, told: &mut Told) {
    for middleware in list(value) {
        let Some((name, "kubernetescrd")) = middleware.split_once('@') else {
            let message = format!("Middleware {middleware} is no object; make it one");
            told.push((Weight::Person, message));
            continue;
        };
        let name = name.split_once('-').map_or(name, |(_, name)| name);
        settings.extensions.push(json!({"type": "ExtensionRef", "extensionRef": {
            "group": "traefik.io", "kind": "Middleware", "name": name}}));
        let message = format!(
            "Middleware {name} is an ExtensionRef now: it must stand in the hub, in the route's namespace, \
             and only members with Traefik can serve it"
        );
        told.push((Weight::Differs, message));
    }
}

/// What needs a person, and what does the same; by the end of the annotation's prefix, then its name.
const PERSON: &[(&str, &str, &str)] = &[
    (
        NGINX,
        "auth-",
        "authentication: a policy of your gateway that follows the route, e.g. SecurityPolicy of Envoy Gateway",
    ),
    (
        NGINX,
        "limit-",
        "rate limits: a policy that follows the route, e.g. BackendTrafficPolicy of Envoy Gateway; each entry counts by itself",
    ),
    (NGINX, "whitelist-source-range", "allowed addresses: e.g. SecurityPolicy of Envoy Gateway"),
    (NGINX, "denylist-source-range", "denied addresses: e.g. SecurityPolicy of Envoy Gateway"),
    (NGINX, "configuration-snippet", "snippets are nginx's own"),
    (NGINX, "server-snippet", "snippets are nginx's own"),
    (
        NGINX,
        "proxy-body-size",
        "limits of bodies: e.g. BackendTrafficPolicy or ClientTrafficPolicy of Envoy Gateway",
    ),
    (
        NGINX,
        "backend-protocol",
        "protocol of the Service: set appProtocol on its port (kubernetes.io/h2c for gRPC); with TLS a BackendTLSPolicy",
    ),
    (NGINX, "proxy-ssl-", "TLS to the Service: a BackendTLSPolicy"),
    (NGINX, "ssl-passthrough", "TLS passthrough: a TLSRoute"),
    (NGINX, "mirror-", "copies of requests: a RequestMirror filter"),
    (NGINX, "proxy-next-upstream", "retries: field `retry` of the rule (experimental channel)"),
    (
        NGINX,
        "upstream-hash-by",
        "consistent hashing: e.g. BackendTrafficPolicy of Envoy Gateway; across members it does not hold",
    ),
    (NGINX, "load-balance", "load balancing: e.g. BackendTrafficPolicy of Envoy Gateway"),
    (NGINX, "custom-http-errors", "pages for errors: e.g. BackendTrafficPolicy of Envoy Gateway"),
    (NGINX, "default-backend", "a backend for errors has no counterpart"),
    (NGINX, "satisfy", "authentication: a policy of your gateway that follows the route"),
    ("haproxy.org/", "path-rewrite", "a URLRewrite filter"),
    ("haproxy.org/", "", "see the policies of your gateway"),
    ("konghq.com/", "plugins", "plugins: policies of your gateway that follow the route"),
    ("konghq.com/", "", "see the policies of your gateway"),
    ("alb.ingress.kubernetes.io/", "actions.", "actions: filters of the rule"),
    (
        "alb.ingress.kubernetes.io/",
        "auth-",
        "authentication: a policy of your gateway that follows the route",
    ),
    (
        "alb.ingress.kubernetes.io/",
        "wafv2-acl-arn",
        "a web application firewall stands before the gateways now",
    ),
    (
        "alb.ingress.kubernetes.io/",
        "certificate-arn",
        "the certificate must be a Secret in each member",
    ),
    ("projectcontour.io/", "", "see the policies of your gateway"),
    (
        "traefik.ingress.kubernetes.io/",
        "router.priority",
        "priorities: the Gateway API orders by what is more specific",
    ),
    (
        "networking.gke.io/",
        "managed-certificates",
        "the certificate must be a Secret in each member",
    ),
];

/// What means nothing any more.
const DROPPED: &[(&str, &str, &str)] = &[
    ("kubernetes.io/", "ingress.class", "the members' gateways serve the route"),
    (
        "kubernetes.io/",
        "tls-acme",
        "let cert-manager make the certificate for the Gateway, in each member",
    ),
    (
        "kubernetes.io/",
        "ingress.global-static-ip-name",
        "addresses belong to the members' gateways",
    ),
    ("kubernetes.io/", "ingress.allow-http", "leave out the listener without TLS"),
    ("cert-manager.io/", "", "annotate the members' Gateways; with several entries use DNS-01"),
    (
        "acme.cert-manager.io/",
        "",
        "annotate the members' Gateways; with several entries use DNS-01",
    ),
    ("external-dns.alpha.kubernetes.io/", "", "a DNSPolicy publishes the names of global gateways"),
    (
        "alb.ingress.kubernetes.io/",
        "",
        "it configures a load balancer, which belongs to the members' gateways",
    ),
    (
        "networking.gke.io/",
        "",
        "it configures a load balancer, which belongs to the members' gateways",
    ),
    (
        "traefik.ingress.kubernetes.io/",
        "router.entrypoints",
        "listeners of the Gateway take its place",
    ),
    ("traefik.ingress.kubernetes.io/", "router.tls", "listeners of the Gateway take its place"),
    (NGINX, "proxy-connect-timeout", "the timeout of a request covers it"),
    (NGINX, "proxy-buffer", "buffers are nginx's own"),
    (NGINX, "proxy-http-version", "gateways agree on it by themselves"),
    (NGINX, "proxy-request-buffering", "buffers are nginx's own"),
    (NGINX, "service-upstream", "gateways choose endpoints"),
    (NGINX, "enable-access-log", "a setting of the members' gateways"),
    (NGINX, "websocket-services", "upgrades work by themselves"),
    ("nginx.org/", "websocket-services", "upgrades work by themselves"),
    ("kubectl.kubernetes.io/", "", "a tool's own"),
    ("meta.helm.sh/", "", "a tool's own"),
    ("argocd.argoproj.io/", "", "a tool's own"),
    ("field.cattle.io/", "", "a tool's own"),
];

fn tell(key: &str, value: &str, told: &mut Told) -> bool {
    let find = |table: &'static [(&str, &str, &str)]| {
        table.iter().find(|(domain, name, _)| {
            key.strip_prefix(domain).is_some_and(|rest| rest.starts_with(name))
        })
    };
    let name = key.split_once('/').map_or(key, |(_, name)| name);
    if let Some((_, _, hint)) = find(PERSON) {
        told.push((Weight::Person, format!("{name} {}: {hint}", short(value))));
    } else if let Some((_, _, hint)) = find(DROPPED) {
        told.push((Weight::Dropped, format!("{name}: {hint}")));
    } else {
        return false;
    }
    true
}
