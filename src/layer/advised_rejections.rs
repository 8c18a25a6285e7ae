use std::{iter::once, sync::OnceLock};

use http::{HeaderName, HeaderValue};

use super::{
    request::{Mistake, credentials::Credentials},
    response::Challenges,
};
use crate::auth::Rejection;

/// The rejections of all mistakes, with advice for the headers of one layer. The first mistake of a
/// client makes them; a flood of mistakes formats nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct AdvisedRejections {
    all: OnceLock<Box<[Advised]>>,
}

#[derive(Clone, Debug)]
struct Advised {
    mistake: Mistake,
    /// The header with the mistake, if that is known.
    header: Option<HeaderName>,
    rejection: Rejection,
    challenge: Option<HeaderValue>,
}

impl AdvisedRejections {
    /// The rejection of `mistake`, made in `header` if that is known.
    pub(super) fn rejection(
        &self,
        mistake: Mistake,
        header: Option<&HeaderName>,
        credentials: &Credentials,
        challenges: &Challenges,
    ) -> Rejection {
        let all = self.all.get_or_init(|| all(credentials, challenges));
        let advised = all.iter().find(|it| it.mistake == mistake && it.header.as_ref() == header);
        advised.map_or_else(|| Rejection::new(mistake.kind()), |it| it.rejection.clone())
    }

    /// The challenge of a rejection that was made here.
    pub(super) fn challenge(&self, rejection: &Rejection) -> Option<&HeaderValue> {
        let advice = rejection.advice()?;
        let made = self.all.get()?.iter().find(|it| it.rejection.advice() == Some(advice));
        made?.challenge.as_ref()
    }
}

fn all(credentials: &Credentials, challenges: &Challenges) -> Box<[Advised]> {
    let headers = once(None).chain(credentials.headers().map(Some));
    headers
        .flat_map(|header| {
            Mistake::ALL.map(|mistake| {
                let advice = credentials.advice(mistake, header);
                let rejection = Rejection::advising(mistake.kind(), advice);
                let challenge = challenges.of(&rejection);
                Advised { mistake, header: header.cloned(), rejection, challenge }
            })
        })
        .collect()
}
