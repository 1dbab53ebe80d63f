//! Which backend gets spans, and how: flags with the names of the OpenTelemetry specification.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};

/// Flags that name a backend.
#[derive(Debug, Clone, Default, Args)]
pub struct BackendArgs {
    /// OTLP endpoint of your OpenTelemetry backend, as http://host:4317. Without it no span leaves.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// How the backend is spoken to.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_PROTOCOL", value_enum, default_value_t)]
    pub otlp_protocol: Protocol,
    /// Headers for the backend, as key=value,key=value. Often secret: prefer the variable.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_HEADERS", hide_env_values = true)]
    pub otlp_headers: Option<String>,
    /// Certificates (PEM) that the backend's certificate is checked against, in place of the system's.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE")]
    pub otlp_certificate: Option<PathBuf>,
    /// How requests to the backend are compressed.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_COMPRESSION", value_enum, default_value_t)]
    pub otlp_compression: Compression,
    /// Most memory for spans that wait for the backend, in MiB. What does not fit is dropped, oldest first.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub otlp_queue_mib: u16,
}

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Protocol {
    /// gRPC, port 4317 by default.
    #[default]
    Grpc,
    /// Protobuf over HTTP, port 4318 by default; /v1/traces is added to the path.
    #[value(name = "http/protobuf", alias = "http")]
    Http,
}

/// How requests are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Compression {
    /// They are not.
    #[default]
    None,
    /// gzip.
    Gzip,
}

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No address.
    #[error("the OTLP endpoint {text:?} is not of the form http://host:port or https://host:port")]
    Endpoint {
        /// What was given.
        text: String,
    },
    /// A header that HTTP does not allow.
    #[error("header {at} of the OTLP headers is not of the form key=value")]
    Header {
        /// Which one, from 1. Its text may be a secret.
        at: usize,
    },
    /// Certificates that cannot be read.
    #[error("no certificate in {path}: {why}")]
    Certificate {
        /// Where.
        path: String,
        /// Why.
        why: String,
    },
}

/// A backend that was understood.
#[derive(Debug, Clone)]
pub struct Backend {
    pub(crate) uri: Uri,
    pub(crate) protocol: Protocol,
    pub(crate) headers: HeaderMap,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) compression: Compression,
}

impl BackendArgs {
    /// The backend; none when there is no endpoint.
    ///
    /// # Errors
    /// [`SettingsError`] for values without meaning.
    pub fn backend(&self) -> Result<Option<Backend>, SettingsError> {
        let Some(text) = self.otlp_endpoint.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(Backend {
            uri: endpoint(text, self.otlp_protocol)?,
            protocol: self.otlp_protocol,
            headers: headers(self.otlp_headers.as_deref().unwrap_or_default())?,
            certificate: self.otlp_certificate.clone(),
            compression: self.otlp_compression,
        }))
    }

    /// Most bytes that wait.
    pub fn queue_bytes(&self) -> usize {
        usize::from(self.otlp_queue_mib.max(1)) << 20
    }
}

impl Backend {
    pub(crate) fn is_tls(&self) -> bool {
        self.uri.scheme_str() == Some("https")
    }

    pub(crate) fn host(&self) -> &str {
        self.uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        self.uri.port_u16().unwrap_or(match self.protocol {
            Protocol::Grpc => 4317,
            Protocol::Http => 4318,
        })
    }
}

fn endpoint(text: &str, protocol: Protocol) -> Result<Uri, SettingsError> {
    let wrong = || SettingsError::Endpoint { text: text.to_owned() };
    let uri: Uri = text.trim().parse().map_err(|_| wrong())?;
    let authority = uri.authority().ok_or_else(wrong)?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    if !known || uri.host().is_none_or(str::is_empty) || authority.as_str().contains('@') {
        return Err(wrong());
    }
    let base = uri.path().trim_end_matches('/');
    let path = match protocol {
        Protocol::Grpc => "/".to_owned(),
        Protocol::Http if base.ends_with("/v1/traces") => base.to_owned(),
        Protocol::Http => format!("{base}/v1/traces"),
    };
    let scheme = uri.scheme_str().unwrap_or("http");
    format!("{scheme}://{authority}{path}").parse().map_err(|_| wrong())
}

fn headers(text: &str) -> Result<HeaderMap, SettingsError> {
    let mut headers = HeaderMap::new();
    for (at, pair) in (1..).zip(text.split(',').filter(|pair| !pair.trim().is_empty())) {
        let wrong = || SettingsError::Header { at };
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let key: HeaderName = key.trim().parse().map_err(|_| wrong())?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn endpoints_get_the_path_of_their_protocol() {
        let rows = [
            ("http://otel:4317", Protocol::Grpc, "http://otel:4317/"),
            ("https://otel", Protocol::Http, "https://otel/v1/traces"),
            ("https://otel/otlp/", Protocol::Http, "https://otel/otlp/v1/traces"),
            ("http://otel:4318/v1/traces", Protocol::Http, "http://otel:4318/v1/traces"),
        ];
        for (text, protocol, want) in rows {
            assert_eq!(endpoint(text, protocol).unwrap().to_string(), want);
        }
        for bad in ["otel:4317", "grpc://otel:4317", "http://", "http://u:p@otel", ""] {
            assert!(endpoint(bad, Protocol::Grpc).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_are_pairs_and_never_shown() {
        let headers = headers("authorization=Basic abc=, x-tenant = shop,").unwrap();
        assert_eq!(headers["authorization"], "Basic abc=");
        assert_eq!(headers["x-tenant"], "shop");
        assert!(!format!("{headers:?}").contains("abc"));
        let error = super::headers("a=b,secret").unwrap_err().to_string();
        assert!(error.contains('2') && !error.contains("secret"), "{error}");
    }

    #[test]
    fn without_an_endpoint_there_is_no_backend() {
        assert!(BackendArgs::default().backend().unwrap().is_none());
        let empty = BackendArgs { otlp_endpoint: Some(String::new()), ..BackendArgs::default() };
        assert!(empty.backend().unwrap().is_none());
    }
}
