use tower_api_key::RequireScope;

fn main() {
    let _: RequireScope = RequireScope::one("orders:read");
}
