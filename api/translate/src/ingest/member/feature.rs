//! What gateways can do that publish nothing about it: data, by controllerName.
//!
//! Only used where `GatewayClass.status.supportedFeatures` is empty; an agent's configuration corrects
//! it, and in the end what the gateway says about our own routes decides.

/// Features of the implementations that were tried, by controllerName.
const KNOWN: &[(&str, &[&str])] = &[(
    // Envoy Gateway 1.9: publishes none.
    "gateway.envoyproxy.io/gatewayclass-controller",
    &[
        "BackendTLSPolicy",
        "GRPCRoute",
        "Gateway",
        "GatewayBackendClientCertificate",
        "GatewayFrontendClientCertificateValidation",
        "GatewayPort8080",
        "HTTPRoute",
        "HTTPRouteBackendProtocolH2C",
        "HTTPRouteBackendProtocolWebSocket",
        "HTTPRouteBackendRequestHeaderModification",
        "HTTPRouteBackendTimeout",
        "HTTPRouteHostRewrite",
        "HTTPRouteMethodMatching",
        "HTTPRouteParentRefPort",
        "HTTPRoutePathRedirect",
        "HTTPRoutePathRewrite",
        "HTTPRoutePortRedirect",
        "HTTPRouteQueryParamMatching",
        "HTTPRouteRequestMirror",
        "HTTPRouteRequestMultipleMirrors",
        "HTTPRouteRequestPercentageMirror",
        "HTTPRouteRequestTimeout",
        "HTTPRouteResponseHeaderModification",
        "HTTPRouteSchemeRedirect",
        "ReferenceGrant",
        "TCPRoute",
        "TLSRoute",
        "TLSRouteModeTerminate",
        "UDPRoute",
        // Ours: see `FEATURE_STREAM_BACKEND_TLS`.
        "fairlead.dev/StreamBackendTLS",
    ],
)];

/// Features of an implementation that was tried.
pub(super) fn known_features(controller: &str) -> Option<&'static [&'static str]> {
    KNOWN.iter().find(|(name, _)| *name == controller).map(|(_, features)| *features)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_sorted_and_named_once() {
        for (controller, features) in KNOWN {
            assert!(features.is_sorted_by(|a, b| a < b), "{controller}");
        }
    }
}
