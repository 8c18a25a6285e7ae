use super::form::Form;
use crate::auth::RejectionKind;

/// What a client did wrong when it sent its key, as far as the layer recognises it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::layer) enum Mistake {
    /// A header comes twice, two headers have a key, or a proxy joined two credentials.
    SeveralKeys,
    /// Quotes, spaces and other characters that are not part of a bearer token.
    Characters,
    /// `Bearer Bearer <key>`, or `Api-Key Bearer <key>`.
    RepeatedScheme,
    /// `X-Api-Key: Bearer <key>`.
    UnexpectedScheme,
    /// `Authorization: <key>`.
    NoScheme,
    /// `Authorization: Token <key>`, or a key as the user or password of `Basic`, where these are not
    /// read.
    OtherScheme,
    /// A password beside the key as user name of `Basic`, or no user name.
    UserName,
    /// A key in a header that the layer does not read.
    OtherHeader,
    /// A key in the query of the URL.
    Url,
    /// A JSON Web Token in place of a key.
    JsonWebToken,
}

impl Mistake {
    pub(in crate::layer) const ALL: [Self; 10] = [
        Self::SeveralKeys,
        Self::Characters,
        Self::RepeatedScheme,
        Self::UnexpectedScheme,
        Self::NoScheme,
        Self::OtherScheme,
        Self::UserName,
        Self::OtherHeader,
        Self::Url,
        Self::JsonWebToken,
    ];

    pub(in crate::layer) fn kind(self) -> RejectionKind {
        match self {
            Self::JsonWebToken => RejectionKind::Malformed,
            _ => RejectionKind::InvalidRequest,
        }
    }

    /// One sentence for the client. `form` is how it should send the key.
    ///
    /// It contains no quote and no backslash, so that it can be an `error_description`.
    pub(super) fn advice(self, form: &Form<'_>) -> String {
        match self {
            Self::SeveralKeys => {
                format!("The request has more than one API key: send exactly one, as {form}.")
            }
            Self::Characters => format!(
                "The API key has characters in or around it that no key has: send it as {form}, \
                 without quotes or spaces."
            ),
            Self::RepeatedScheme if form.has_one_scheme() => {
                format!("{} comes twice: send the API key as {form}.", form.schemes())
            }
            Self::RepeatedScheme => {
                format!("The API key has two schemes before it: send it as {form}.")
            }
            Self::UnexpectedScheme => {
                format!("This header takes the API key alone: send it as {form}.")
            }
            Self::NoScheme => {
                format!("The API key has no {} before it: send it as {form}.", form.schemes())
            }
            Self::OtherScheme => {
                let schemes = form.schemes();
                format!("The API key has another scheme than {schemes}: send it as {form}.")
            }
            Self::UserName => format!(
                "`Basic` takes the API key as user name, with an empty password: send it as {form}."
            ),
            Self::OtherHeader => {
                format!("The API key is in a header that is not read: send it as {form}.")
            }
            Self::Url => {
                format!("The API key is in the URL, which is logged: send it as {form}.")
            }
            Self::JsonWebToken => {
                format!("This is a JSON Web Token, not an API key: send a key as {form}.")
            }
        }
    }
}
