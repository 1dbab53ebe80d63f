//! Worlds of real clusters, scenarios on them, benches and the `verify` command.
//!
//! A world is one hub cluster and some members, each in a network namespace of its own, made of
//! unmodified etcd, kube-apiserver, kube-controller-manager, Envoy Gateway and Envoy. The harness
//! plays only what a machine without containers lacks: the cloud's load balancer and a kubelet.

pub mod ask;
pub mod backend;
pub mod bench;
pub mod clock;
pub mod cluster;
pub mod demo;
pub mod disk;
pub mod echo;
pub mod etcd;
pub mod fault;
pub mod fleet;
pub mod gateway;
pub mod grpc;
pub mod http1;
pub mod jaeger;
pub mod kubelet;
pub mod launch;
pub mod load;
pub mod net;
pub mod object;
pub mod otlp;
pub mod path;
pub mod pki;
pub mod process;
pub mod prometheus;
pub mod report;
pub mod scenario;
pub mod storage;
pub mod system;
pub mod tls;
pub mod tool;
pub mod verify;
pub mod wait;
pub mod world;
