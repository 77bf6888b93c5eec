"""A highway: one car, driven by the agent, among others on the lanes of a ring road.

Every car is a kinematic bicycle (Polack et al. 2017, doi:10.1109/IVS.2017.7995816) that steers towards the middle of a
lane. The others accelerate by the Intelligent Driver Model (Treiber, Hennecke & Helbing 2000, arXiv:cond-mat/0002177)
and change lanes by MOBIL (Kesting, Treiber & Helbing 2007, doi:10.3141/1999-10). The task is that of highway-env
(Leurent 2018): drive fast, and hit no one. The road is a ring, so that cars are neither made nor lost, and only the
start of an episode is random. Car 0 is the agent's. Lane 0 is the rightmost, y grows to the left.

The neighbours of a car are found by one minimum over all pairs of whole numbers that hold both a distance and a car's
number: half of the reductions, and of a kind that a CPU vectorises, which a minimum of floats is not, as it minds NaN.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from research.core.errors import UserError

KEEP, LEFT, RIGHT, FASTER, SLOWER, IDM_MOBIL = range(6)
"""The actions. `IDM_MOBIL`, which is not in the action space, leaves the car to IDM and MOBIL: a baseline."""

DT = 0.2
"""Seconds of a sub-step."""
LENGTH, WIDTH, LANE = 5.0, 2.0, 4.0
"""Of a car and of a lane, in metres."""
ACCELERATION, BRAKING, HARDEST = 1.5, 2.0, 8.0
"""IDM's a and b, and the hardest that a car can brake; m/s²."""
GAP, HEADWAY = 2.0, 1.5
"""IDM's least gap s0 in metres, and its time headway T in seconds."""
POLITENESS, THRESHOLD, SAFE = 0.25, 0.2, 4.0
"""MOBIL's p, its least advantage, and the hardest braking that it asks of the follower, here of the car too; m/s²."""
TURNS = 5
"""Pairs of sub-steps, one for each side, in which a car may change lanes once."""
SPEEDS, STEP = (10.0, 30.0), 5.0
"""The least and the greatest speed that the agent can choose, and how much an action changes it; m/s."""
START = 25.0
"""The agent's speed at first, in m/s."""
NOBODY = 1e6
"""The gap where there is no car, in metres."""
TICKS, FURTHEST = 256, 2**30
"""Of a metre, in the order of cars; and what is beyond any number of that order."""
VIEW = 100.0
"""How far the agent sees, in metres ahead and behind."""
SIDES = 2
"""How many lanes the agent sees on either side of the one that it steers to."""
CELLS = 20
"""Cells of a lane of the occupancy grid."""


class Cars(NamedTuple):
    """Leaves [cars].

    Attributes:
        x: f32, where the middle of the car is along the ring, in metres from 0 to its length
        y: f32, where it is across the road, in metres left of the middle of lane 0
        heading: f32, in radians to the left of the road's direction
        speed: f32, in m/s
        lane: i32, the lane that it steers to
        desired: f32, the speed that it drives at if nobody is ahead, in m/s
    """

    x: jax.Array
    y: jax.Array
    heading: jax.Array
    speed: jax.Array
    lane: jax.Array
    desired: jax.Array


@struct.dataclass
class HighwayState(environment.EnvState):
    """time i32[], the number of decisions of this episode, and leaves:

    Attributes:
        cars: the cars, [cars]
        target: f32[], the speed that the agent has chosen
        distance: f32[], metres that the agent has driven
        seconds: f32[], the time that it has driven for
        crashed: bool[], whether it has hit another car
    """

    cars: Cars
    target: jax.Array
    distance: jax.Array
    seconds: jax.Array
    crashed: jax.Array


@struct.dataclass
class HighwayParams(environment.EnvParams):
    """max_steps_in_episode: decisions; ring: metres of the road; slowest, fastest: desired speeds of the others, m/s;
    crash_cost: what a crash takes off the reward."""

    max_steps_in_episode: int = 40
    ring: float = 400.0
    slowest: float = 18.0
    fastest: float = 24.0
    crash_cost: float = 10.0


def idm(speed: jax.Array, desired: jax.Array, gap: jax.Array, approach: jax.Array) -> jax.Array:
    """The acceleration of the Intelligent Driver Model, in m/s², at a gap to a car that is approached at `approach`."""
    wanted = GAP + jnp.maximum(0, speed * HEADWAY + speed * approach / (2 * (ACCELERATION * BRAKING) ** 0.5))
    return ACCELERATION * (1 - (speed / desired) ** 4 - (wanted / jnp.maximum(gap, 0.1)) ** 2)


class Neighbours(NamedTuple):
    """The next cars ahead (leader) and behind (follower) in some lane, f32[...].

    Where there is none, the gap is `NOBODY`, and the speeds are those of any car.
    """

    lead_gap: jax.Array
    lead_speed: jax.Array
    follow_gap: jax.Array
    follow_speed: jax.Array
    follow_desired: jax.Array


def ordered(x: jax.Array, ring: jax.Array) -> jax.Array:
    """How far ahead of car i car j is along the ring, i32[cars, cars], as a number that orders them and ends in j."""
    ticks = (x * TICKS).astype(jnp.int32)
    ahead = ticks[None] - ticks[:, None]
    ahead = jnp.where(ahead < 0, ahead + jnp.int32(ring * TICKS), ahead)
    return ahead << len(x).bit_length() | jnp.arange(len(x))


def nearest(order: jax.Array, there: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and the last of the cars that are `there`, i32[...] each; -1 where there is none.

    order  i32[..., cars], rows of `ordered`
    there  bool[..., cars], the cars to look at
    """
    number = (1 << order.shape[-1].bit_length()) - 1
    first, last = jnp.where(there, order, FURTHEST).min(-1), jnp.where(there, order, -1).max(-1)
    return jnp.where(first == FURTHEST, -1, first & number), jnp.where(last == -1, -1, last & number)


def neighbours(cars: Cars, order: jax.Array, there: jax.Array, ring: jax.Array) -> Neighbours:
    """The neighbours of each car, [cars], among those that are `there`, bool[cars, cars]; see `nearest`."""
    first, last = nearest(order, there)

    def gap(behind: jax.Array, ahead: jax.Array, which: jax.Array) -> jax.Array:
        distance = ahead - behind  # of cars within a tick of one another it may have either sign
        distance = jnp.where(distance < -1 / TICKS, distance + ring, distance)
        return jnp.where(which < 0, NOBODY, distance - LENGTH)

    return Neighbours(
        gap(cars.x, cars.x[first], first),
        cars.speed[first],
        gap(cars.x[last], cars.x, last),
        cars.speed[last],
        cars.desired[last],
    )


def mobil(cars: Cars, now: Neighbours, then: Neighbours) -> jax.Array:
    """Whether MOBIL changes lanes: bool[cars], by the neighbours in the lane now and in the other one."""
    speed = cars.speed
    lead = lambda to: idm(speed, cars.desired, to.lead_gap, speed - to.lead_speed)
    before = lambda to: idm(to.follow_speed, to.follow_desired, to.follow_gap, to.follow_speed - speed)
    without = lambda to: idm(
        to.follow_speed,
        to.follow_desired,
        to.follow_gap + LENGTH + to.lead_gap,
        to.follow_speed - to.lead_speed,
    )
    others = (before(then) - without(then)) + (without(now) - before(now))
    safe = (before(then) > -SAFE) & (lead(then) > -SAFE)
    return safe & (lead(then) - lead(now) + POLITENESS * others > THRESHOLD)


def bicycle(cars: Cars, acceleration: jax.Array, steering: jax.Array, ring: jax.Array) -> tuple[Cars, jax.Array]:
    """The kinematic bicycle, its centre of mass midway between the axles, `DT` later; and how far along it went.

    acceleration  f32[cars], in m/s²
    steering      f32[cars], the angle of the front wheels in radians
    """
    slip = jnp.arctan(jnp.tan(steering) / 2)
    speed = jnp.maximum(cars.speed + acceleration * DT, 0)
    mean = (cars.speed + speed) / 2
    turn = mean / (LENGTH / 2) * jnp.sin(slip) * DT
    course = cars.heading + turn / 2 + slip
    forward = mean * jnp.cos(course) * DT
    x = cars.x + forward
    moved = cars._replace(
        x=jnp.where(x >= ring, x - ring, x),
        y=cars.y + mean * jnp.sin(course) * DT,
        heading=cars.heading + turn,
        speed=speed,
    )
    return moved, forward


def lane_keeping(cars: Cars) -> jax.Array:
    """The steering angle towards the middle of the lane: proportional, of the heading to the distance across."""
    speed = jnp.maximum(cars.speed, 5)
    across = jnp.clip(0.75 * (LANE * cars.lane - cars.y), -2, 2)
    turn = 3.0 * (across / speed - cars.heading)
    return jnp.clip(turn * LENGTH / speed, -0.5, 0.5)


def touching(cars: Cars, ring: jax.Array) -> jax.Array:
    """Whether car 0 overlaps each other one, bool[cars - 1]: rectangles, by the separating axis theorem."""
    ego, others = jax.tree.map(lambda x: x[:1], cars), jax.tree.map(lambda x: x[1:], cars)
    dx, dy = others.x - ego.x, others.y - ego.y
    dx = dx - ring * jnp.round(dx / ring)
    cos, sin = jnp.abs(jnp.cos(others.heading - ego.heading)), jnp.abs(jnp.sin(others.heading - ego.heading))
    long, wide = (LENGTH + LENGTH * cos + WIDTH * sin) / 2, (WIDTH + WIDTH * cos + LENGTH * sin) / 2

    def meet(heading: jax.Array) -> jax.Array:
        along, across = jnp.cos(heading), jnp.sin(heading)
        return (jnp.abs(dx * along + dy * across) < long) & (jnp.abs(dy * along - dx * across) < wide)

    return meet(ego.heading) & meet(others.heading)


def occupied(cars: Cars, lanes: int) -> jax.Array:
    """The lanes that a car is in or is changing to, a bit for each: i32[cars]."""
    at = lambda y: 1 << jnp.clip(jnp.round(y / LANE), 0, lanes - 1).astype(jnp.int32)
    return at(cars.y - WIDTH / 2) | at(cars.y + WIDTH / 2) | (1 << cars.lane)


def drive(
    cars: Cars, target: jax.Array, automatic: jax.Array, count: jax.Array, lanes: int, ring: jax.Array
) -> tuple[Cars, jax.Array]:
    """All cars `DT` later, and how far car 0 went.

    target     f32[], the speed that the agent has chosen
    automatic  bool[], whether IDM and MOBIL drive car 0 as well
    count      i32[], the number of sub-steps before. Lanes are changed to the left in even ones and to the right in odd
               ones, so that no two cars take one gap from two sides, and every car has a turn in `TURNS`, or cars that
               make way for one another would all do so at once
    """
    numbers = jnp.arange(len(cars.x))
    left, turn = count % 2 == 0, numbers % TURNS == count // 2 % TURNS
    ego = (numbers == 0) & ~automatic
    order, other = ordered(cars.x, ring), numbers[:, None] != numbers
    bits = occupied(cars, lanes)
    beside = jnp.where(left, bits << 1, bits >> 1) & ((1 << lanes) - 1)
    now = neighbours(cars, order, other & (bits[:, None] & bits != 0), ring)
    then = neighbours(cars, order, other & (beside[:, None] & bits != 0), ring)
    # A car that is between two lanes, or has none on that side, stays.
    change = turn & (bits == 1 << cars.lane) & (beside != 0) & mobil(cars, now, then) & ~ego
    acceleration = idm(cars.speed, cars.desired, now.lead_gap, cars.speed - now.lead_speed)
    acceleration = jnp.where(ego, target - cars.speed, acceleration)
    cars = cars._replace(lane=cars.lane + jnp.where(change, jnp.where(left, 1, -1), 0))
    cars, forward = bicycle(cars, jnp.clip(acceleration, -HARDEST, ACCELERATION), lane_keeping(cars), ring)
    return cars, forward[0]


class Highway(environment.Environment[HighwayState, HighwayParams]):
    """The environment. A reward is the mean speed, as a fraction of the greatest, less `crash_cost` for a crash.

    An episode is terminated by a crash, and truncated after 40 s.

    Attributes:
        cars: number of cars, the agent's among them
        lanes: number of lanes
        substeps: number of sub-steps of 0.2 s between decisions
        observation: what the agent sees, each number from -1 to 1. "kinematics" f32[11, 5]: its own car, and the
            nearest car ahead and behind in each of 5 lanes. "grid" f32[5, 20, 5]: the cells of the lanes, 10 m each
    """

    def __init__(
        self,
        cars: int = 20,
        lanes: int = 4,
        substeps: int = 5,
        observation: Literal["kinematics", "grid"] = "kinematics",
    ) -> None:
        if not 1 <= cars <= 200 or not 1 <= lanes <= 30 or substeps < 1:  # whole numbers of 32 bits hold no more
            raise UserError("a highway has 1 to 200 cars, 1 to 30 lanes and at least 1 sub-step")
        if observation not in ("kinematics", "grid"):
            raise UserError(f"a highway is seen by observation kinematics or grid, not {observation!r}")
        self.cars, self.lanes, self.substeps, self.observation = cars, lanes, substeps, observation
        self.rows = -(-cars // lanes)

    @property
    def default_params(self) -> HighwayParams:
        """40 seconds, on a road with a car for every 80 m of a lane."""
        return HighwayParams(max_steps_in_episode=max(1, round(40 / (DT * self.substeps))), ring=80.0 * self.rows)

    def check_params(self, params: HighwayParams) -> None:
        """Raises UserError where the cars have no room on the road, it is too long for `ordered`, or they stand."""
        least, most = 20 * self.rows, FURTHEST // TICKS >> self.cars.bit_length()
        if not least <= params.ring <= most:
            raise UserError(
                f"environment.params: a ring of {self.cars} cars on {self.lanes} lanes has {least} to {most} m, not "
                f"{params.ring}"
            )
        if not 0 < params.slowest <= params.fastest < math.inf or not math.isfinite(params.crash_cost):
            raise UserError(
                "environment.params: slowest and fastest are speeds above 0 m/s, the second not below the first, and "
                f"crash_cost is a number, not {params.slowest}, {params.fastest} and {params.crash_cost}"
            )

    def reset_env(self, key: jax.Array, params: HighwayParams) -> tuple[jax.Array, HighwayState]:
        """The cars of a lane are spread over the ring, at least 20 m from one another."""
        keys = jax.random.split(key, 3)
        number = jnp.arange(self.cars)
        lane = (number + jax.random.randint(keys[0], (), 0, self.lanes)) % self.lanes
        share = params.ring / self.rows
        x = number // self.lanes * share + jax.random.uniform(keys[1], (self.cars,)) * (share - 20)
        desired = jax.random.uniform(keys[2], (self.cars,), minval=params.slowest, maxval=params.fastest)
        speed, desired = desired.at[0].set(START), desired.at[0].set(SPEEDS[1])
        cars = Cars(x, LANE * lane, jnp.zeros(self.cars), speed, lane, desired)
        state = HighwayState(jnp.int32(0), cars, jnp.float32(START), jnp.float32(0), jnp.float32(0), jnp.bool_(False))
        return self.observe(key, state, None, params), state

    def step_env(
        self, key: jax.Array, state: HighwayState, action: jax.Array, params: HighwayParams
    ) -> tuple[jax.Array, HighwayState, jax.Array, jax.Array, dict[str, Any]]:
        """One decision and its sub-steps. Nothing moves after a crash."""
        side = (action == LEFT).astype(jnp.int32) - (action == RIGHT)
        faster = (action == FASTER).astype(jnp.float32) - (action == SLOWER)
        lane, ring = jnp.clip(state.cars.lane[0] + side, 0, self.lanes - 1), jnp.float32(params.ring)
        before = state.replace(
            time=state.time + 1,
            cars=state.cars._replace(lane=state.cars.lane.at[0].set(lane)),
            target=jnp.clip(state.target + STEP * faster, *SPEEDS),
        )

        def substep(i: jax.Array, state: HighwayState) -> HighwayState:
            count = (state.time - 1) * self.substeps + i
            cars, forward = drive(state.cars, state.target, action == IDM_MOBIL, count, self.lanes, ring)
            distance, crashed = state.distance + forward, touching(cars, ring).any()
            moved = state.replace(cars=cars, distance=distance, seconds=state.seconds + DT, crashed=crashed)
            return jax.tree.map(lambda old, new: jnp.where(state.crashed, old, new), state, moved)

        state = jax.lax.fori_loop(0, self.substeps, substep, before)
        furthest = DT * self.substeps * SPEEDS[1]
        reward = (state.distance - before.distance) / furthest - params.crash_cost * state.crashed
        return self.observe(key, state, action, params), state, reward, state.crashed, {}

    def observe(
        self, key: jax.Array, state: HighwayState, action: jax.Array | None, params: HighwayParams
    ) -> jax.Array:
        """The observation; see the class. The middle one of the lanes is that which the agent steers to.

        The rows of "kinematics" are speed, chosen speed, lane, metres left of it, and the speed to the left; and for
        each car 1 (0 if there is none, -1 if there is no such lane), metres ahead and to the left, and how much faster
        it goes along the road and to the left. The channels of "grid" are whether there is a car, how much faster it
        goes, whether there is such a lane, speed and chosen speed.
        """
        cars, ring = state.cars, jnp.float32(params.ring)
        lanes = cars.lane[0] + jnp.arange(-SIDES, SIDES + 1)
        road = (lanes >= 0) & (lanes < self.lanes)
        bits = occupied(cars, self.lanes).at[0].set(0)
        there = (bits >> jnp.clip(lanes, 0, self.lanes - 1)[:, None] & 1 == 1) & road[:, None]
        ahead = cars.x - cars.x[0]
        ahead = ahead - ring * jnp.round(ahead / ring)
        along, left = cars.speed * jnp.cos(cars.heading), cars.speed * jnp.sin(cars.heading)
        speed, target = cars.speed[0] / SPEEDS[1], state.target / SPEEDS[1]
        if self.observation == "grid":
            cell = jnp.floor((ahead / VIEW + 1) / 2 * CELLS)[:, None] == jnp.arange(CELLS)
            total = lambda values: there.astype(jnp.float32) @ (cell * values[:, None])
            whole = lambda x: jnp.broadcast_to(x, (2 * SIDES + 1, CELLS))
            channels = total(jnp.ones_like(ahead)), total((along - along[0]) / 20), whole(1.0 * road[:, None])
            return jnp.clip(jnp.stack([*channels, whole(speed), whole(target)], -1), -1, 1)
        aside = (cars.y[0] - LANE * cars.lane[0]) / (2 * LANE)
        own = jnp.stack([speed, target, cars.lane[0] / max(self.lanes - 1, 1), aside, left[0] / 5])
        others = jnp.stack(
            [jnp.ones_like(ahead), ahead / VIEW, (cars.y - cars.y[0]) / (3 * LANE), (along - along[0]) / 20, left / 5],
            -1,
        )
        order = ordered(cars.x, ring)[0]
        rows = []
        for which, sign in zip(nearest(order, there), (1, -1), strict=True):
            seen = (which >= 0) & (sign * ahead[which] >= 0) & (jnp.abs(ahead[which]) < VIEW)
            nobody = jnp.array([0.0, sign, 0, 0, 0]) * road[:, None] - jnp.eye(5)[0] * ~road[:, None]
            rows.append(jnp.where(seen[:, None], others[which], nobody))
        return jnp.clip(jnp.concatenate([own[None], *rows]), -1, 1)

    def is_terminated(self, state: HighwayState, params: HighwayParams) -> jax.Array:
        """Whether the agent's car has hit another."""
        return state.crashed

    def action_space(self, params: HighwayParams | None = None) -> spaces.Discrete:
        """Keep, left, right, faster, slower."""
        return spaces.Discrete(5)

    def observation_space(self, params: HighwayParams | None = None) -> spaces.Box:
        """See the class."""
        lanes = 2 * SIDES + 1
        shape = (1 + 2 * lanes, 5) if self.observation == "kinematics" else (lanes, CELLS, 5)
        return spaces.Box(-1, 1, shape, jnp.float32)
