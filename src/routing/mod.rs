//! Which peer leads where: every known route and the choice among them ([`table`]), and the table that packets are
//! looked up in ([`forwarding`]).

pub mod forwarding;
pub mod table;
