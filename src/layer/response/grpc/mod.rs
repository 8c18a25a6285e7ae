//! Rejections as gRPC clients read them. Without the feature `grpc` no request is a gRPC request.

#[cfg(not(feature = "grpc"))]
mod off;
#[cfg(feature = "grpc")]
mod status;

#[cfg(not(feature = "grpc"))]
pub(in crate::layer) use self::off::*;
#[cfg(feature = "grpc")]
pub(in crate::layer) use self::status::*;
