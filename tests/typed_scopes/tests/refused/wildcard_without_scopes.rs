tower_api_key::scopes! {
    enum Scope {
        Read = "orders:read",
        Books = "books:*",
    }
}

fn main() {
    _ = Scope::catalog();
}
