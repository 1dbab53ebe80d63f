//! Kubernetes objects → model. Foreign objects may hold anything: the smallest part that cannot be
//! read is dropped and a note says so.

pub mod hub;
pub mod member;
