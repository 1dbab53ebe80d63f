module fairlead.dev/e2e/tools/gateway-api

go 1.26.0

require (
	sigs.k8s.io/gateway-api v1.6.1
	sigs.k8s.io/mcs-api v0.5.2
)
