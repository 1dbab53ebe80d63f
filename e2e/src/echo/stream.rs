//! What goes on while a request is still being sent: upgrades (WebSocket) and gRPC streams.
//!
//! After an upgrade every byte comes back as it is; no frames are made or checked, as gateways do not
//! look into them either. In a gRPC stream each message is answered as soon as it has arrived.

use std::convert::Infallible;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{io::copy, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{BODY_MAX, Body, Identity, grpc_message, grpc_ok, grpc_response};

/// Names who answers an upgrade, where no body can.
pub(crate) const UPGRADE_CLUSTER: &str = "x-echo-cluster";
/// Last part of the path of a streaming method.
const STREAM_METHOD: &str = "/Stream";
/// Answers of one stream that wait for a slow reader.
const ANSWERS_MAX: usize = 16;

pub(super) fn is_upgrade<B>(request: &Request<B>) -> bool {
    let upgrade = request.headers().get("upgrade").and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case("websocket"))
}

pub(super) fn upgrade(identity: &Identity, request: Request<Incoming>) -> Response<Body> {
    tokio::spawn(async move {
        // A client that went away is none of our business.
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = copy(&mut read, &mut write).await;
        }
    });
    let mut response = Response::new(Empty::new().boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    if let Ok(cluster) = HeaderValue::from_str(&identity.cluster) {
        headers.insert(UPGRADE_CLUSTER, cluster);
    }
    response
}

pub(super) fn is_grpc_stream<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
        && request.uri().path().ends_with(STREAM_METHOD)
}

pub(super) fn grpc_stream(identity: &Identity, request: Request<Incoming>) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
    tokio::spawn(answer_each(identity.clone(), request.into_body(), sender));
    grpc_response(BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))))
}

type Answers = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

async fn answer_each(identity: Identity, mut body: Incoming, answers: Answers) {
    let mut buffer = BytesMut::new();
    let mut number = 0_u32;
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        buffer.extend_from_slice(&data);
        if buffer.len() > BODY_MAX {
            return;
        }
        while let Some(bytes) = take_message(&mut buffer) {
            number += 1;
            let answer = json!({"cluster": identity.cluster, "number": number, "bytes": bytes});
            let message = grpc_message(answer.to_string().as_bytes());
            if answers.send(Ok(Frame::data(message))).await.is_err() {
                return;
            }
        }
    }
    // Nobody may be there any more to be told.
    let _ = answers.send(Ok(Frame::trailers(grpc_ok()))).await;
}

/// Takes one whole message out of the buffer and tells its length.
fn take_message(buffer: &mut BytesMut) -> Option<usize> {
    let length: [u8; 4] = buffer.get(1..5)?.try_into().ok()?;
    let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5 + length);
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_whole_and_in_order() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 0, 2, 7, 7, 0, 0, 0, 0, 0, 0, 0][..]);
        assert_eq!(take_message(&mut buffer), Some(2));
        assert_eq!(take_message(&mut buffer), Some(0));
        assert_eq!((take_message(&mut buffer), buffer.len()), (None, 2));
    }
}
