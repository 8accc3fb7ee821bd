r"""A market with known truth: a log as a recommender leaves it, and every probability behind it.

Users and items have latent tastes, hinted at by attributes: users come in segments (age, gender and country follow the
segment; the young mind prices more), items in categories and brands (which set their place and their price).

- **Visits.** Users differ in activity (log-normal). They come in sessions of about four requests, a minute apart; a
  session is in one domain. Some users and items are cold: they arrive late.
- **Lists.** A mediocre logging policy (popularity, a blurred idea of the taste, what was clicked last, chance) shows
  lists of `list_size`.
- **Clicks.** A click needs examination, which falls with the position, and appeal: :class:`Truth` has the equations.
- **Drift.** Each user carries an interest :math:`h`, at first 0. A request with clicks moves it to the clicked items,
  :math:`h \leftarrow 0.3\, h + 0.7\, \overline{q}_{\text{clicked}}`; a new session begins with 0.7 of it. So
  recent clicks say more about the next one than old clicks do.
- **Conversions.** A click may become a cart (ten minutes later on average), a cart an order (`order_delay`). What is
  bought is not quite what is clicked, so the converted are a biased sample of the shown.
- **Pages of your own.** `Truth.value` is the expected clicks of any page, `Truth.respond` plays it: clicks, whether the
  user asks for another page, and the interest that is left.
- **Options.** Several domains with turned taste and their own base rate; queries; ads that pay their bid per click
  until their budget is spent (noticed within 1024 requests); labels that are not mature when the log is read
  (`mature_days`; or, as zeros that may still become ones, ``data.delays.as_of``).

Base rates are set on a sample of users, so `ctr`, `cart_rate` and `order_rate` are met nearly, not exactly.
Requests are simulated in blocks of 1024 in the order of time: memory beside the result does not grow with the log.
"""

from recstack.data.simulator.market import Market, planted, simulate, small
from recstack.data.simulator.world import MarketConfig, Response, Truth

__all__ = ["Market", "MarketConfig", "Response", "Truth", "planted", "simulate", "small"]
