"""How much each caller has sent of late, by its name: a balance that fills at its rate, up to its burst."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from rerank_grpc.callers import Caller, Counted, Rate
from rerank_grpc.errors import RateLimited

# Balances beyond so many make room for new ones, those that are full: they tell nothing.
MOST_BALANCES = 1_024


@dataclass(slots=True)
class Balance:
    """The amount that a caller may send at a time of the clock; below 0 it is in debt."""

    rate: Rate
    left: float
    at: float

    def bring_to(self, now: float) -> None:
        """Adds what the time since has brought, up to the burst."""
        self.left = min(self.rate.burst, self.left + (now - self.at) * self.rate.per_second)
        self.at = now

    def change(self, rate: Rate) -> None:
        """Goes on under another rate with what is left: only time fills a balance."""
        if rate.counted is not self.rate.counted:
            # Of another unit the same part is left.
            self.left *= rate.burst / self.rate.burst
        self.left, self.rate = min(self.left, rate.burst), rate

    def seconds_until(self, amount: float) -> float:
        """The seconds until so much may be sent, rounded up to what a status can tell: milliseconds.

        A burst is enough for any amount, which then leaves a debt: else a large call were never let in.
        """
        missing = min(amount, self.rate.burst) - self.left
        # Of a caller who comes back at that very time, floats may have lost a part in 10^15.
        return 0.0 if missing <= 1e-9 * self.rate.burst else _in_milliseconds(missing / self.rate.per_second)


class Rates:
    """The balances of all callers; any thread may call every method.

    A rate of documents is paid when a call enters, one of tokens when these are known: a call that enters
    without a debt may make one. `clock` tells seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._balances: dict[str, Balance] = {}

    def enter(self, caller: Caller, documents: int) -> None:
        """Lets a call in and charges its documents; raises RateLimited, which costs nothing.

        A part of a call that was charged has no documents.
        """
        rate = caller.rate
        if rate is None or not documents:
            return
        amount = documents if rate.counted is Counted.DOCUMENTS else 0
        with self._lock:
            balance = self._balance(caller.name, rate)
            if not (seconds := balance.seconds_until(amount)):
                balance.left -= amount
                return
        raise _refusal(caller.name, rate, seconds)

    def give_back(self, caller: Caller, documents: int) -> None:
        """Takes the charge of a call back that was refused before any work was done for it."""
        self._charge(caller, Counted.DOCUMENTS, -documents)

    def charge_tokens(self, caller: Caller, tokens: int) -> None:
        """Charges the tokens of a call that was let in, which stay charged whatever becomes of it."""
        self._charge(caller, Counted.TOKENS, tokens)

    def _charge(self, caller: Caller, counted: Counted, amount: float) -> None:
        rate = caller.rate
        if rate is None or rate.counted is not counted:
            return
        with self._lock:
            balance = self._balance(caller.name, rate)
            balance.left = min(rate.burst, balance.left - amount)

    def _balance(self, name: str, rate: Rate) -> Balance:
        """Finds a caller's balance as it is now; a caller that is new has its burst."""
        now, balance = self._clock(), self._balances.get(name)
        if balance is None:
            if len(self._balances) >= MOST_BALANCES:
                self._forget_full(now)
            balance = self._balances[name] = Balance(rate, rate.burst, now)
        balance.bring_to(now)
        if balance.rate is not rate:  # nor equal, or of a file that was read again
            balance.change(rate)
        return balance

    def _forget_full(self, now: float) -> None:
        for name, balance in list(self._balances.items()):
            balance.bring_to(now)
            if balance.left >= balance.rate.burst:
                del self._balances[name]


def _in_milliseconds(seconds: float) -> float:
    return math.ceil(seconds * 1e3) / 1e3


def _refusal(name: str, rate: Rate, seconds: float) -> RateLimited:
    what = rate.counted.value
    return RateLimited(
        f"{name} has used up its rate of {rate.per_second:g} {what} a second: retry in {seconds:g} s",
        metadata={
            "caller": name,
            "counted": what,
            "per_second": f"{rate.per_second:g}",
            "burst": f"{rate.burst:g}",
        },
        retry_after=seconds,
    )
