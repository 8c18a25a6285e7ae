//! What tonic's client sees.

use std::net::SocketAddr;

use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{MetadataKey, MetadataMap},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    cases::{Case, Seen, valid},
    demo::{
        DeleteRequest, GetRequest, Order, TotalResponse, WatchRequest, orders_client::OrdersClient,
    },
    doubles::within,
    orders::{HOSTS, Host},
};

/// tonic's client, which sends the same metadata with each call.
#[derive(Clone)]
pub(crate) struct Client {
    orders: OrdersClient<Channel>,
    metadata: MetadataMap,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, metadata: &[(&'static str, String)]) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self::over(within(endpoint.connect()).await.unwrap(), metadata)
    }

    pub(crate) fn over(channel: Channel, metadata: &[(&'static str, String)]) -> Self {
        let mut map = MetadataMap::new();
        for (name, value) in metadata {
            map.append(MetadataKey::from_static(name), value.parse().unwrap());
        }
        Self { orders: OrdersClient::new(channel), metadata: map }
    }

    async fn of(case: &Case) -> Self {
        Self::connect(case.address, &case.metadata()).await
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }

    pub(crate) async fn get(&self) -> Result<Order, Status> {
        let request = self.request(GetRequest { id: "7".to_owned() });
        Ok(within(self.orders.clone().get(request)).await?.into_inner())
    }

    pub(crate) async fn delete(&self) -> Result<(), Status> {
        let request = self.request(DeleteRequest::default());
        within(self.orders.clone().delete(request)).await.map(drop)
    }

    /// The stream, after its first order.
    pub(crate) async fn watch(&self) -> Result<Streaming<Order>, Status> {
        let request = self.request(WatchRequest {});
        let mut orders = within(self.orders.clone().watch(request)).await?.into_inner();
        within(orders.message()).await?.expect("the first order");
        Ok(orders)
    }

    pub(crate) async fn total(
        &self,
        ids: &'static [&'static str],
    ) -> Result<TotalResponse, Status> {
        let requests = stream::iter(ids).map(|id| GetRequest { id: (*id).to_owned() });
        let request = self.request(requests);
        Ok(within(self.orders.clone().total(request)).await?.into_inner())
    }

    /// A stream whose requests never end, after its first order.
    async fn lookup(&self) -> Result<Streaming<Order>, Status> {
        let requests = stream::iter([GetRequest { id: "7".to_owned() }]).chain(stream::pending());
        let request = self.request(requests);
        let mut orders = within(self.orders.clone().lookup(request)).await?.into_inner();
        within(orders.message()).await?.expect("the first order");
        Ok(orders)
    }
}

/// Each kind of method ends as expected.
pub(crate) async fn is_seen(case: &Case) {
    let seen = [
        ("Get", Client::of(case).await.get().await.map(drop)),
        ("Watch", Client::of(case).await.watch().await.map(drop)),
        ("Total", Client::of(case).await.total(&["1"]).await.map(drop)),
        ("Lookup", Client::of(case).await.lookup().await.map(drop)),
    ];
    for (method, seen) in seen {
        assert_eq!(
            seen.map_err(|status| Seen::of(&status)),
            Err(case.expected.clone()),
            "{method}"
        );
    }
}

#[tokio::test]
async fn a_valid_key_is_admitted_to_all_kinds_of_methods() {
    for host in HOSTS {
        let (case, _) = valid(host).await;
        let client = Client::of(&case).await;
        assert_eq!(client.get().await.unwrap().cents, 7);
        assert_eq!(client.total(&["1", "2"]).await.unwrap().cents, 3);
        client.watch().await.unwrap();
        client.lookup().await.unwrap();
        let status = Seen::of(&client.delete().await.unwrap_err());
        assert_eq!((status.code, &*status.details["scope"]), (7, "orders:write"), "{host:?}");
    }
}

#[tokio::test]
async fn streams_end_with_their_key_as_unauthenticated() {
    for host in HOSTS {
        let (case, key) = valid(host).await;
        let client = Client::of(&case).await;
        let (mut watch, mut lookup) =
            (client.watch().await.unwrap(), client.lookup().await.unwrap());

        case.service.revoke(&key).await;

        for stream in [&mut watch, &mut lookup] {
            let status = within(stream.message()).await.unwrap_err();
            assert_eq!(Seen::of(&status), Seen::key_ended(), "{host:?}");
        }
    }
}

#[tokio::test]
async fn a_request_that_streams_ends_with_its_key_as_unauthenticated() {
    for host in HOSTS {
        let (case, key) = valid(host).await;
        let client = Client::of(&case).await;
        let first = stream::iter([GetRequest::default()]);
        let request = client.request(first.chain(stream::pending()));
        let mut orders = client.orders.clone();
        let total = tokio::spawn(async move { orders.total(request).await });
        case.total_begins().await;

        case.service.revoke(&key).await;

        let status = within(total).await.unwrap().unwrap_err();
        assert_eq!(Seen::of(&status), Seen::key_ended_before_response(), "{host:?}");
    }
}

#[tokio::test]
async fn what_is_not_behind_the_layer_is_open() {
    let (case, _) = valid(Host::Axum).await;
    let channel = Endpoint::from_shared(format!("http://{}", case.address)).unwrap();
    let channel = within(channel.connect()).await.unwrap();
    let status = HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(status.into_inner().status, 1);
    let mut connection = TcpStream::connect(case.address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    connection.write_all(request).await.unwrap();
    let mut answer = String::new();
    within(connection.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("ok"), "{answer}");
}

#[tokio::test]
async fn rejections_leave_the_connection_as_it_is() {
    for host in HOSTS {
        let (case, key) = valid(host).await;
        let mut client = Client::of(&case).await;
        let watch = client.watch().await.unwrap();
        for _ in 0..20 {
            client.metadata.clear();
            assert_eq!(client.get().await.unwrap_err().code(), Code::Unauthenticated);
            assert_eq!(client.total(&["1"; 100]).await.unwrap_err().code(), Code::Unauthenticated);
            client
                .metadata
                .insert("authorization", format!("Bearer {}", key.text).parse().unwrap());
            assert_eq!(client.delete().await.unwrap_err().code(), Code::PermissionDenied);
            client.get().await.unwrap();
        }
        assert_eq!(*case.running.connections.borrow(), 1, "{host:?}");
        drop(watch);
    }
}
