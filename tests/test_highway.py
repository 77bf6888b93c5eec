"""The highway: its models against numbers worked out by hand, its traffic, what the agent sees, and its report."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image
from scipy.stats import chi2

from research.core.errors import UserError
from research.core.experiment import Split
from research.core.state import Batch, State
from research.evaluation import highway as report
from research.rl.environments import Environment, make
from research.rl.highway import (
    DT,
    FASTER,
    FURTHEST,
    IDM_MOBIL,
    KEEP,
    LANE,
    LEFT,
    LENGTH,
    NOBODY,
    RIGHT,
    SLOWER,
    START,
    WIDTH,
    Cars,
    Highway,
    Neighbours,
    bicycle,
    drive,
    idm,
    lane_keeping,
    mobil,
    neighbours,
    occupied,
    ordered,
    touching,
)

RING = jnp.float32(400)


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Numbers matter here, speed doesn't."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def cars(x, y=0.0, heading=0.0, speed=20.0, desired=30.0) -> Cars:
    """Cars that are in the middle of the lane that they steer to, if y says so."""
    x = np.asarray(x, np.float32)
    full = lambda value: jnp.asarray(np.broadcast_to(np.float32(value), x.shape))
    lane = jnp.asarray(np.broadcast_to(np.round(np.asarray(y) / LANE).astype(np.int32), x.shape))
    return Cars(jnp.asarray(x), full(y), full(heading), full(speed), lane, full(desired))


def after(road: Cars, substeps: int, target: float = 0.0, lanes: int = 4, automatic: bool = True) -> Cars:
    """The cars, all left to IDM and MOBIL unless the agent drives at `target`, so many sub-steps later."""
    return driven_on(road, jnp.int32(substeps), jnp.float32(target), jnp.bool_(automatic), lanes)


@functools.partial(jax.jit, static_argnums=4)
def driven_on(road, substeps, target, automatic, lanes):
    return jax.lax.fori_loop(0, substeps, lambda i, road: drive(road, target, automatic, i, lanes, RING)[0], road)


# The models.


def test_idm_by_hand():
    """a = 1.5, b = 2, s0 = 2 m, T = 1.5 s; (20 / 30)^4 = 16 / 81."""
    assert float(idm(20.0, 30.0, NOBODY, 0.0)) == pytest.approx(1.5 * (1 - 16 / 81))
    assert float(idm(30.0, 30.0, NOBODY, 0.0)) == pytest.approx(0, abs=1e-6)
    # Behind a car that is as fast: s* = 2 + 30 = 32 m.
    assert float(idm(20.0, 30.0, 64.0, 0.0)) == pytest.approx(1.5 * (1 - 16 / 81 - 1 / 4))
    # Behind one that is 5 m/s slower: s* = 32 + 20 * 5 / (2 * sqrt(3)).
    assert float(idm(20.0, 30.0, 64.0, 5.0)) == pytest.approx(
        1.5 * (1 - 16 / 81 - ((32 + 50 / math.sqrt(3)) / 64) ** 2)
    )
    # One that runs away doesn't pull: s* is never less than s0.
    assert float(idm(20.0, 30.0, 64.0, -50.0)) == pytest.approx(1.5 * (1 - 16 / 81 - (2 / 64) ** 2))


def around(lead_gap, lead_speed, follow_gap, follow_speed) -> Neighbours:
    return Neighbours(*(np.array([x], np.float32) for x in (lead_gap, lead_speed, follow_gap, follow_speed, 30)))


def test_mobil_weighs_advantages_against_those_of_others():
    """At 20 m/s behind a car as fast, 40 m away: a = 1.5 (1 - 16/81 - (32/40)²) = 0.244. The other lane has nobody
    ahead: 1.204. The advantage of 0.96 is more than the threshold of 0.2, unless what the new follower loses, times
    0.25, is more than 0.76."""
    ego, alone, decides = cars([0.0]), around(40, 20, NOBODY, 20), jax.jit(mobil)
    decide = lambda now, then: bool(decides(ego, now, then)[0])
    assert decide(alone, around(NOBODY, 20, NOBODY, 20))
    assert decide(alone, around(52, 20, NOBODY, 20))  # 1.5 (32² / 40² - 32² / 52²) = 0.392
    assert not decide(alone, around(44, 20, NOBODY, 20))  # 1.5 (32² / 40² - 32² / 44²) = 0.167
    # A new follower, of the same speed: it has 1.204 and gets 1.204 - 1.5 (32 / gap)². It loses 3.04 at 22.5 m.
    assert decide(alone, around(NOBODY, 20, 23.0, 20))
    assert not decide(alone, around(NOBODY, 20, 22.0, 20))
    # The old follower, 40 m behind, gains 1.5 (32²/40² - 32²/85²) = 0.747 when we leave: 0.167 + 0.187 is enough.
    assert decide(around(40, 20, 40, 20), around(44, 20, NOBODY, 20))
    # Safety comes first, here of the follower (1.204 - 1.5 (32/15)² = -5.6), and then of the car.
    assert not decide(around(5, 0, NOBODY, 20), around(NOBODY, 20, 15, 20))
    assert decide(around(5, 0, NOBODY, 20), around(NOBODY, 20, 25, 20))
    assert not decide(around(5, 0, NOBODY, 20), around(15, 20, NOBODY, 20))


def test_the_bicycle_drives_the_circle_of_its_steering():
    """Wheels at d: the slip is b = atan(tan(d) / 2), the centre's radius (LENGTH / 2) / sin(b); Polack et al. 2017."""
    steering, speed, time = 0.1, 10.0, 4.0
    slip = math.atan(math.tan(steering) / 2)
    road, forward, step = cars([0.0], speed=speed), 0.0, jax.jit(bicycle)
    for _ in range(round(time / DT)):
        road, moved = step(road, jnp.zeros(1), jnp.full(1, steering), RING)
        forward += float(moved[0])
    x, y, heading = 0.0, 0.0, 0.0
    for _ in range(40_000):
        x += speed * math.cos(heading + slip) * 1e-4
        y += speed * math.sin(heading + slip) * 1e-4
        heading += speed / (LENGTH / 2) * math.sin(slip) * 1e-4
    assert float(road.heading[0]) == pytest.approx(heading, abs=1e-4)
    assert forward == pytest.approx(x, abs=0.06) and float(road.y[0]) == pytest.approx(y, abs=0.06)
    radius = (LENGTH / 2) / math.sin(slip)
    assert math.hypot(x, y) == pytest.approx(2 * radius * math.sin(speed * time / radius / 2), rel=1e-3)


def test_speed_changes_by_the_acceleration_and_never_below_nothing():
    road, forward = bicycle(cars([399.0, 0.0], speed=[10.0, 1.0]), jnp.array([1.5, -8.0]), jnp.zeros(2), RING)
    np.testing.assert_allclose(road.speed, [10.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(forward, [10.15 * 0.2, 0.5 * 0.2], rtol=1e-5)
    np.testing.assert_allclose(road.x, [1.03, 0.1], atol=1e-4)  # round the ring


def test_lanes_are_kept():
    """A car is in the next lane after 4 s, and passes its middle by no more than a hand."""
    road = cars([0.0])._replace(lane=jnp.array([1]))
    path, step = [], jax.jit(lambda road: bicycle(road, jnp.zeros(1), lane_keeping(road), RING)[0])
    for _ in range(40):
        road = step(road)
        path.append(float(road.y[0]))
    assert path[19] > LANE - 0.5 and max(path) < LANE + 0.1 and path[-1] == pytest.approx(LANE, abs=0.01)


def test_rectangles_touch():
    """Against a brute force: points all over one car that are in the other."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 41), np.linspace(-0.5, 0.5, 41)), -1).reshape(-1, 2)
    turned = lambda angle: np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    size, both = np.array([LENGTH, WIDTH]), 0
    x, y = random.uniform(-6, 6, 300), random.uniform(-4, 4, 300)
    own, heading = 0.3, random.uniform(-0.6, 0.6, 300)
    road = cars([1.0, *(1 + x) % 400], [0.0, *y], [own, *heading])
    found = np.asarray(jax.jit(touching)(road, RING))
    for i in range(300):
        margins = []
        for scale in (0.97, 1.03):
            other = grid * size * scale @ turned(heading[i]).T + [x[i], y[i]]
            margins.append((abs(other @ turned(own)) <= size * scale / 2).all(1).any())
        if margins[0] == margins[1]:
            both += 1
            assert found[i] == margins[0]
    assert both > 250 and 50 < found.sum() < 250


found_in = jax.jit(lambda road, there: neighbours(road, ordered(road.x, RING), there, RING))


def test_neighbours_are_the_nearest_around_the_ring():
    random = np.random.default_rng(1)
    x, lane = random.uniform(0, 400, 12), random.integers(0, 3, 12)
    road = cars(x, lane * LANE, speed=random.uniform(10, 30, 12), desired=random.uniform(20, 30, 12))
    there = lane[None] == lane[:, None] + 1
    found = jax.tree.map(np.asarray, found_in(road, jnp.array(there)))
    for i in range(12):
        others = np.flatnonzero(there[i])
        if not len(others):
            assert found.lead_gap[i] == found.follow_gap[i] == NOBODY
            continue
        ahead = (x[others] - x[i]) % 400
        lead, follow = others[ahead.argmin()], others[ahead.argmax()]
        np.testing.assert_allclose(found.lead_gap[i], ahead.min() - LENGTH, atol=1e-3)
        np.testing.assert_allclose(found.follow_gap[i], 400 - ahead.max() - LENGTH, atol=1e-3)
        assert found.lead_speed[i] == road.speed[lead]
        assert (found.follow_speed[i], found.follow_desired[i]) == (road.speed[follow], road.desired[follow])
    assert 0 < (found.lead_gap == NOBODY).sum() < 12


@pytest.mark.parametrize("apart", [0, 1e-3, -1e-3, 3e-3, -3e-3])
def test_cars_side_by_side_are_no_gap(apart):
    """Of two cars at one place each is the other's leader or follower, at less than no distance; not a turn away."""
    road = cars([10.0, 10.0 + apart, 350.0], [0.0, LANE, LANE])
    found = found_in(road, jnp.array([[False, True, True], [True, False, True], [False] * 3]))
    np.testing.assert_allclose(jnp.minimum(found.lead_gap, found.follow_gap)[:2], -LENGTH, atol=0.01)


def test_lanes_are_occupied_while_changing():
    road = cars([0.0] * 4, [0.0, 0.9, 1.5, 12.0])._replace(lane=jnp.array([0, 1, 1, 2]))
    np.testing.assert_array_equal(occupied(road, 4), [0b1, 0b11, 0b11, 0b1100])


# Traffic.


def test_a_free_road_is_driven_at_the_desired_speed():
    road = after(cars([0.0, 200.0], [0.0, 2 * LANE], speed=10.0, desired=[30.0, 22.0]), 400)
    np.testing.assert_allclose(road.speed, [30.0, 22.0], rtol=1e-3)
    np.testing.assert_array_equal(road.lane, [0, 2])


def test_a_car_follows_at_the_gap_of_equilibrium():
    """(s0 + v T) / sqrt(1 - (v / v0)^4). At v = 20 m/s it is 32 / sqrt(1 - 16 / 81) = 35.7 m, and here a little less:
    the car in front, on its ring, is 360 m behind the other and minds it."""
    road = cars([100.0, 30.0], speed=20.0, desired=[20.0, 30.0])
    road = after(road, 600, lanes=1)
    v = float(road.speed[1])
    np.testing.assert_allclose(road.speed, [19.96, 19.96], atol=0.01)
    gap = float(road.x[0] - road.x[1]) % 400 - LENGTH
    assert gap == pytest.approx((2 + 1.5 * v) / math.sqrt(1 - (v / 30) ** 4), abs=0.02)
    assert gap == pytest.approx(32 / math.sqrt(1 - 16 / 81), abs=0.2)


def test_a_faster_car_overtakes_or_is_let_by():
    """By turns car 0 decides first: it overtakes; and the slower one, where it is car 0, makes way, as p isn't 0."""
    faster = after(cars([50.0, 100.0], speed=20.0, desired=[30.0, 15.0]), 60)
    slower = after(cars([100.0, 50.0], speed=20.0, desired=[15.0, 30.0]), 60)
    np.testing.assert_array_equal([faster.lane, slower.lane], [[1, 0], [1, 0]])
    assert faster.x[0] > faster.x[1] + 10 and slower.x[1] > slower.x[0] + 10


def test_two_cars_do_not_take_one_gap_from_two_sides():
    """Both are behind slow cars and beside a free lane, and have their turn at once: one changes, the other sees it."""
    x, lane = [50.0, 75.0, 75.0, 250.0, 300.0, 50.0], np.array([0, 0, 2, 0, 0, 2])
    slow = [20.0, 10, 10, 20, 20, 20]
    road = after(cars(x, lane * LANE, speed=slow, desired=[30, 10, 10, 20, 20, 30]), 2, lanes=3)
    np.testing.assert_array_equal(road.lane, [1, 0, 2, 0, 0, 2])


@pytest.fixture(scope="module")
def driven():
    """40 s of 48 roads, random actions: (environment, the states after each decision, rewards and observations)."""
    env = Highway()
    params = env.default_params
    keys = jax.random.split(jax.random.key(0), 48)

    def decision(states, key):
        actions = jax.random.randint(key, (48,), 0, 5)
        observation, states, reward, terminated, _ = jax.vmap(env.step_env, (0, 0, 0, None))(
            keys, states, actions, params
        )
        return states, (states, reward, terminated, observation)

    @jax.jit
    def run(keys):
        first, states = jax.vmap(env.reset_env, (0, None))(keys, params)
        return first, states, jax.lax.scan(decision, states, jax.random.split(jax.random.key(1), 40))[1]

    return run, keys, jax.device_get(run(keys))


def test_it_is_deterministic_and_its_starts_are_not(driven):
    run, keys, before = driven
    again = jax.device_get(run(keys))
    jax.tree.map(np.testing.assert_array_equal, again, before)
    _, start, _ = before
    assert len(np.unique(start.cars.x[:, 0])) == 48 and set(start.cars.lane[:, 0]) == {0, 1, 2, 3}


def test_cars_are_conserved_and_touch_only_where_it_says_so(driven):
    _, _, (_, start, (states, reward, terminated, _)) = driven
    road = states.cars
    assert np.isfinite(np.stack([np.asarray(leaf, float) for leaf in road])).all()
    assert ((road.x >= 0) & (road.x < 400)).all()  # of the ring: none leaves it
    assert ((road.lane >= 0) & (road.lane < 4)).all() and (abs(road.y - 6) < 6.5).all()
    np.testing.assert_array_equal(road.desired, np.broadcast_to(start.cars.desired, road.desired.shape))
    meet = np.zeros((40, 48), bool)
    touched = jax.jit(jax.vmap(jax.vmap(lambda road: touching(road, RING).any())))
    for i in range(20):
        found = np.asarray(touched(jax.tree.map(lambda leaf, i=i: np.roll(leaf, -i, -1), road)))
        if i == 0:
            np.testing.assert_array_equal(found, states.crashed)
        meet |= found
    np.testing.assert_array_equal(meet, states.crashed)  # so the others never touch one another
    np.testing.assert_array_equal(terminated, states.crashed)
    assert 10 < states.crashed[-1].sum() < 48
    distance = np.diff(np.concatenate([np.zeros((1, 48)), states.distance]), axis=0)
    np.testing.assert_allclose(reward, distance / 30 - 10.0 * states.crashed, atol=1e-5)
    later = states.crashed[:-1]
    assert (distance[1:][later] == 0).all() and (distance[1:][~later] > 0).all()


def folded(step, state, actions):
    for action in actions:
        state = step(state, jnp.int32(action))
    return state


def test_actions_choose_lane_and_speed():
    env = Highway(cars=1)
    params = env.default_params
    _, state = env.reset_env(jax.random.key(0), params)
    state = state.replace(cars=state.cars._replace(lane=jnp.array([1]), y=jnp.array([LANE])))
    step = jax.jit(lambda state, action: env.step_env(jax.random.key(0), state, action, params)[1])

    def chosen(*actions):
        last = folded(step, state, actions)
        return int(last.cars.lane[0]), float(last.target)

    assert chosen(KEEP) == (1, 25) and chosen(LEFT) == (2, 25) and chosen(RIGHT) == (0, 25)
    assert chosen(FASTER) == (1, 30) and chosen(SLOWER) == (1, 20)
    assert chosen(RIGHT, RIGHT) == (0, 25) and chosen(*[LEFT] * 5) == (3, 25)
    assert chosen(*[FASTER] * 3) == (1, 30) and chosen(*[SLOWER] * 5) == (1, 10)
    last = folded(step, state, [LEFT, *[KEEP] * 9])
    assert float(last.cars.y[0]) == pytest.approx(2 * LANE, abs=0.01)
    last = folded(step, state, [SLOWER, *[KEEP] * 9])
    assert float(last.cars.speed[0]) == pytest.approx(20, abs=0.01)


# What the agent sees.


def test_kinematics_by_hand():
    """The agent at 30 m/s in lane 1 of 4; 50 m ahead in lane 2 a car at 20; 40 m behind in lane 1 one at 30."""
    env, road = Highway(cars=4), cars([390.0, 40.0, 350.0, 190.0], [LANE, 2 * LANE, LANE, 0.0], speed=[30, 20, 30, 9])
    params = env.default_params.replace(ring=400.0)
    _, state = env.reset_env(jax.random.key(0), params)
    state = state.replace(cars=road, target=jnp.float32(15))
    expected = np.zeros((11, 5), np.float32)
    expected[0] = [1, 0.5, 1 / 3, 0, 0]
    for first, sign in ((1, 1), (6, -1)):
        expected[first : first + 4, 1] = sign
        expected[first : first + 5, 0] = [-1, 0, 0, 0, 0]  # lanes -1, 0, 1, 2, 3
    expected[1 + 3] = [1, 0.5, 4 / 12, -0.5, 0]
    expected[6 + 2] = [1, -0.4, 0, 0, 0]
    expected[[5, 10], 1] = [1, -1]
    expected[[1, 6], 1] = 0
    np.testing.assert_allclose(jax.jit(env.observe)(None, state, None, params), expected, atol=1e-6)


def test_grid_by_hand():
    env, road = Highway(cars=4, observation="grid"), cars([390.0, 40.0, 350.0, 190.0], [LANE, 2 * LANE, LANE, 0.0])
    params = env.default_params.replace(ring=400.0)
    _, state = env.reset_env(jax.random.key(0), params)
    state = state.replace(cars=road._replace(speed=jnp.array([30.0, 20, 30, 9])), target=jnp.float32(15))
    seen = np.asarray(jax.jit(env.observe)(None, state, None, params))
    expected = np.zeros((5, 20, 5), np.float32)
    expected[1:, :, 2], expected[..., 3], expected[..., 4] = 1, 1, 0.5
    expected[3, 15, :2] = [1, -0.5]  # 50 m ahead, to the left
    expected[2, 6, 0] = 1  # 40 m behind
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_observations_are_in_range(driven):
    _, _, (first, _, (_, _, _, observation)) = driven
    for seen in (first, observation):
        assert seen.shape[-2:] == (11, 5) and abs(seen).max() <= 1
    assert np.unique(observation[..., 1:, 0]).tolist() == [-1, 0, 1]
    assert np.ptp(observation, axis=(0, 1))[1:, 1:].min() > 0.1  # each of the others' numbers varies


def test_it_follows_the_interface():
    env = make(Environment("highway:Highway"))
    assert (env.observation_shape, env.num_actions, env.max_steps) == ((11, 5), 5, 40)
    for wrong in ({"cars": 0}, {"cars": 201}, {"lanes": 0}, {"substeps": 0}):
        with pytest.raises(UserError, match="1 to 200 cars, 1 to 30 lanes and at least 1 sub-step"):
            Highway(**wrong)
    with pytest.raises(UserError, match="kinematics or grid, not 'pixels'"):
        Highway(observation="pixels")


@pytest.mark.parametrize("ring", [99.0, 131073.0])
def test_the_road_has_room_for_its_cars_and_an_end(ring):
    """Of 20 cars on 4 lanes, a lane has 5 at least 20 m apart; their order has 30 bits, 8 of a metre and 5 of a car."""
    road = lambda ring: Environment("highway:Highway", params=(("ring", ring),))
    with pytest.raises(UserError, match=rf"a ring of 20 cars on 4 lanes has 100 to 131072 m, not {ring}"):
        make(road(ring))
    assert make(road(100.0)).num_actions == make(road(131072.0)).num_actions == 5
    furthest = ordered(jnp.array([1.0, 0.0, *[0.0] * 18]), jnp.float32(131072))[0]
    assert furthest.max() < FURTHEST and (furthest >= 0).all()


# The report.


@pytest.mark.parametrize("count", [0, 1, 7, 120])
def test_the_bound_is_the_quantile_of_chi_squared(count):
    assert report.poisson_bound(count) == pytest.approx(chi2.ppf(0.95, 2 * count + 2) / 2, rel=1e-9)


def test_a_replay_shows_the_substeps_of_the_decisions():
    env = Highway()
    params = env.default_params
    _, state = env.reset_env(jax.random.key(5), params)
    actions = jnp.array([LEFT, FASTER, KEEP, IDM_MOBIL])
    frames = jax.jit(lambda start: report.replayed(env, params, start, actions))(state)
    step = jax.jit(lambda state, action: env.step_env(jax.random.key(0), state, action, params)[1])
    for i, action in enumerate(actions):
        state = step(state, action)
        now = jax.tree.map(lambda x, i=i: x[5 * (i + 1)], frames)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), now.cars, state.cars)
    assert frames.time.shape == (21,)


def test_the_time_of_an_episode_ends_with_its_collision():
    """Nothing moves afterwards, so a longer episode adds no time, and the mean speed is that of driving."""
    env = Highway(lanes=3)
    params = env.default_params
    keep = lambda observation, draws: jnp.full(len(observation), KEEP)
    short, long = (
        report.drives(env, params.replace(max_steps_in_episode=frames), keep, jnp.arange(8)) for frames in (16, 32)
    )
    crashed = np.asarray(short.collided)
    assert crashed.any() and not crashed.all()
    np.testing.assert_array_equal(short.seconds[crashed], long.seconds[crashed])
    np.testing.assert_allclose(short.seconds[~crashed], 16 * DT * env.substeps, rtol=1e-5)
    assert (long.seconds[~crashed] > short.seconds[~crashed]).all()
    np.testing.assert_allclose(short.distance / short.seconds, START, rtol=1e-5)


def test_drivers_are_measured_and_drawn(tmp_path):
    """A policy that always keeps its lane and speed is the baseline "constant"."""
    config = Environment("highway:Highway", max_steps=16, params=(("lanes", 3),))
    made = report.report(config, make(config), lambda state, observation: jnp.full(len(observation), KEEP))
    batches = [Batch(np.arange(4 * i, 4 * i + 4), np.array([1, 1, 1, i == 0], np.float32), (), ()) for i in (0, 1)]
    state = State(jnp.int32(0), jax.random.key(0), {"q": {}}, {}, {}, ())
    numbers = made.run(state, Split("test", batches), tmp_path)
    drivers = [f"{name}_{metric}" for name in report.BASELINES for metric in report.METRICS]
    assert set(numbers) == {"episode_return", *report.METRICS, *drivers}
    for metric in report.METRICS:
        assert numbers[metric] == numbers[f"constant_{metric}"]
    # It goes at 25 m/s until it collides.
    assert numbers["constant_collisions_per_km"] > 0
    assert numbers["constant_speed"] == pytest.approx(START, rel=1e-5)
    assert numbers["idm_mobil_speed"] < START
    assert numbers["random_speed"] != numbers["constant_speed"]
    assert numbers["idm_mobil_collisions_per_km"] == 0
    assert numbers["idm_mobil_collisions_per_km_bound"] == pytest.approx(
        -math.log(0.05) / (numbers["idm_mobil_speed"] * 7 * 16 / 1000), rel=1e-5
    )
    assert imread(tmp_path / "episode.png").std() > 0.05
    with Image.open(tmp_path / "episode.gif") as film:
        assert film.n_frames > 20 and film.size == (1000, 70)


def test_every_seed_of_a_driver_is_measured(tmp_path):
    """Of two, of which the second follows IDM and MOBIL."""
    config = Environment("highway:Highway", max_steps=16, params=(("lanes", 3),))
    act = lambda state, observation: jnp.full(len(observation), state.params["q"])
    made = report.report(config, make(config), act)
    params = {"q": jnp.array([KEEP, IDM_MOBIL], jnp.int32)}
    state = State(jnp.int32(0), jax.random.split(jax.random.key(0)), params, {}, {}, ())
    batches = [Batch(np.arange(4), np.ones(4, np.float32), (), ())]
    numbers = made.run(state, Split("test", batches), tmp_path)
    for metric in report.METRICS:
        assert numbers[metric] == [numbers[f"constant_{metric}"], numbers[f"idm_mobil_{metric}"]]
