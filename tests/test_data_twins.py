"The simulated twins: their files are those of the originals, the truth stands beside them, and no single column gives away what only a combination holds."
import json, re

import numpy as np
import pandas as pd
import pytest

from recx.data import planted
from recx.data.planted import LAYERS, RANK, auc_of, mutual_information, true_utility
from recx.data.twins import CLOTHES, LIFE, NEW, SONGS, articles_table, make_fashion, make_music, shown_of, songs_tables, world_of_clothes, world_of_songs
from recx.text.schemas import attributes_of, read_value

MAKERS = dict(fashion=(make_fashion, CLOTHES), music=(make_music, SONGS))
HM = dict(articles='article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,graphical_appearance_no,graphical_appearance_name,colour_group_code,colour_group_name,perceived_colour_value_id,perceived_colour_value_name,perceived_colour_master_id,perceived_colour_master_name,department_no,department_name,index_code,index_name,index_group_no,index_group_name,section_no,section_name,garment_group_no,garment_group_name,detail_desc',
          customers='customer_id,FN,Active,club_member_status,fashion_news_frequency,age,postal_code', transactions_train='t_dat,customer_id,article_id,price,sales_channel_id')
KKBOX = dict(songs='song_id,song_length,genre_ids,artist_name,composer,lyricist,language', song_extra_info='song_id,name,isrc', members='msno,city,bd,gender,registered_via,registration_init_time,expiration_date', train='msno,song_id,source_system_tab,source_screen_name,source_type,target')


@pytest.fixture(scope='module')
def twins(tmp_path_factory):
    "Both twins at their usual size."
    return {domain: make(tmp_path_factory.mktemp(domain)) for domain, (make, _) in MAKERS.items()}


def truth(folder): return json.loads((folder/'planted'/'truth.json').read_text(encoding='utf-8'))
def items(folder): return pd.read_parquet(folder/'planted'/'items.parquet').set_index('item')


# files

@pytest.mark.parametrize('domain, files', [('fashion', HM), ('music', KKBOX)])
def test_files_have_the_names_columns_and_order_of_the_originals(twins, domain, files):
    assert {p.name for p in twins[domain].iterdir()} == {f'{name}.csv' for name in files} | {'planted'}
    for name, columns in files.items(): assert (twins[domain]/f'{name}.csv').read_text(encoding='utf-8').partition('\n')[0] == columns
    assert truth(twins[domain])['banner'] == 'simulated'

def test_fashion_reads_as_the_original_does(twins):
    folder = twins['fashion']
    log, people, things = (pd.read_csv(folder/f'{name}.csv', dtype=str) for name in ('transactions_train', 'customers', 'articles'))
    assert len(log) == 12_000 and log.customer_id.nunique() == len(people) == 400 and len(things) == 300
    assert people.customer_id.str.fullmatch('[0-9a-f]{64}').all() and people.customer_id.is_monotonic_increasing and people.customer_id.is_unique
    assert things.article_id.str.fullmatch(r'0\d{9}').all() and things.article_id.is_monotonic_increasing and things.article_id.is_unique
    assert set(log.article_id) <= set(things.article_id) and set(log.customer_id) <= set(people.customer_id)
    days = pd.to_datetime(log.t_dat)
    assert log.t_dat.str.fullmatch(r'\d{4}-\d\d-\d\d').all() and days.is_monotonic_increasing and (days.max() - days.min()).days//7 == 103
    assert log.price.astype(float).between(0, 1).all() and set(log.sales_channel_id) == {'1', '2'}
    assert 0 < log.duplicated(['t_dat', 'customer_id', 'article_id']).mean() < .1 # second units
    assert '"' not in (folder/'transactions_train.csv').read_text()[:5000] and re.search(r',"[^"\n]*,[^"\n]*"\n', (folder/'articles.csv').read_text())

def test_music_reads_as_the_original_does(twins):
    folder = twins['music']
    log, people, songs, extra = (pd.read_csv(folder/f'{name}.csv', dtype=str) for name in ('train', 'members', 'songs', 'song_extra_info'))
    assert len(log) == 12_000 and not log.duplicated(['msno', 'song_id']).any() and set(log.target) == {'0', '1'}
    assert songs.song_id.str.len().eq(44).all() and songs.song_id.is_unique and set(songs.song_id) == set(extra.song_id)
    assert set(log.song_id) <= set(songs.song_id) and set(log.msno) <= set(people.msno)
    assert people.bd.astype(int).eq(0).mean() > .2 and people.gender.isna().mean() > .2
    assert people[['registration_init_time', 'expiration_date']].apply(lambda c: pd.to_datetime(c, format='%Y%m%d').notna().all()).all()
    assert extra.isrc.dropna().str.fullmatch('[A-Z]{2}[0-9A-Z]{3}[0-9]{7}').all()

@pytest.mark.parametrize('domain', MAKERS)
def test_one_seed_one_world(domain, tmp_path, twins):
    make, _ = MAKERS[domain]
    for seed, same in ((0, True), (1, False)):
        again = make(tmp_path/str(seed), seed=seed)
        for path in sorted(p for p in twins[domain].rglob('*') if p.is_file()): assert (path.read_bytes() == (again/path.relative_to(twins[domain])).read_bytes()) == same, path.name

@pytest.mark.parametrize('domain', MAKERS)
@pytest.mark.parametrize('size', [dict(users=60, items=40, events=600, seed=1), dict(users=30, items=20, events=90), dict(users=25, items=500, events=2000), dict(users=50, items=30, events=750)])
def test_any_size(domain, size, tmp_path):
    folder = MAKERS[domain][0](tmp_path/'twin', **size)
    log = pd.read_csv(folder/('transactions_train.csv' if domain == 'fashion' else 'train.csv'))
    assert len(log) == size['events'] if domain == 'fashion' else len(log) >= .95*size['events'] and not log.duplicated(['msno', 'song_id']).any()
    assert log.iloc[:, 1 if domain == 'fashion' else 0].nunique() == size['users']

def test_portions_are_worked_on_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr('recx.data.twins.PORTION', 1000)
    folder = make_fashion(tmp_path, users=300, items=100, events=5000)
    log = pd.read_csv(folder/'transactions_train.csv')
    assert len(log) == 5000 and log.t_dat.is_monotonic_increasing and log.customer_id.nunique() == 300

@pytest.mark.parametrize('wrong, said', [(dict(events=500), 'sim_events=500'), (dict(items=5), 'sim_items=5'), (dict(text=1.5), 'sim_text=1.5'), (dict(text_noise=-1), 'sim_text_noise=-1'), (dict(l2=-1.), 'sim_l2=-1'), (dict(segments='1,1,1'), "sim_segments='1,1,1'"), (dict(popularity=float('nan')), 'sim_popularity=nan')])
@pytest.mark.parametrize('domain', MAKERS)
def test_what_makes_no_world_is_refused_and_leaves_nothing(domain, wrong, said, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)): MAKERS[domain][0](tmp_path/'twin', **wrong)
    assert not (tmp_path/'twin').exists()


# layers

@pytest.mark.parametrize('domain', MAKERS)
def test_attributes_and_labels_are_those_of_the_schemas(domain, twins):
    known = {a.name: (layer, a) for layer in LAYERS for a in attributes_of(domain, layer)}
    for trait in MAKERS[domain][1]:
        layer, attribute = known[trait.name]
        assert layer == trait.layer and (not attribute.labels or set(trait.labels) <= set(attribute.labels)), trait.name
        assert set(items(twins[domain])[trait.name]) <= set(trait.labels)
        assert all(len({t.name: t for t in MAKERS[domain][1]}[name].labels) % len(trait.labels) == 0 for name in trait.of)

def test_the_columns_of_clothes_mean_their_first_layer():
    rng = np.random.default_rng(0)
    world = world_of_clothes(300, rng)
    table = articles_table(world, 0., rng)
    for attribute in attributes_of('fashion', 'L1'):
        trait = next((t for t in CLOTHES if t.name == attribute.name), None)
        if trait is None: continue
        column = next(c for c in attribute.columns if c in table)
        assert [read_value(attribute, v) for v in table[column]] == [trait.labels[k] for k in world[trait.name]], attribute.name

def test_shown_columns_and_words_tell_of_the_third_layer_only_together():
    rng, n = np.random.default_rng(0), 20_000
    for world, traits, tables in ((world_of_clothes, CLOTHES, lambda w: articles_table(w, .1, rng)), (world_of_songs, SONGS, lambda w: songs_tables(w, .1, rng)[0].assign(name=songs_tables(w, .1, rng)[1].name))):
        true = world(n, rng)
        table = tables(true)
        words = table['detail_desc' if 'detail_desc' in table else 'name'].str.findall(r'\w+').map(set)
        for trait in (t for t in traits if t.of):
            own, pair = true[trait.name].to_numpy(), [true[name].to_numpy() for name in trait.of]
            single = {c: mutual_information(pd.factorize(table[c])[0], own) for c in table if table[c].nunique() < 60}
            single |= {w: mutual_information(words.map(lambda there: w in there).to_numpy().astype(int), own) for w in set().union(*words.head(200))}
            assert max(single.values()) < .02, max(single, key=single.get)
            assert mutual_information(6*pair[0] + pair[1], own) > .97*np.log2(len(trait.labels))

def test_text_can_be_read_in_full_or_not_at_all():
    for world, group in ((world_of_clothes, 'product'), (world_of_songs, 'artist')):
        for legible in (1., 0.):
            true, shown, plain = shown_of(world, group, 20_000, legible, np.random.default_rng(0))
            assert plain.mean() == legible
            for name in true.columns.drop(group): assert mutual_information(true[name].to_numpy(), shown[name].to_numpy()) > .9 if legible else mutual_information(true[name].to_numpy(), shown[name].to_numpy()) < .01

@pytest.mark.parametrize('world, traits, group', [(world_of_clothes, CLOTHES, 'product'), (world_of_songs, SONGS, 'artist')])
def test_what_cannot_be_read_shares_nothing_either(world, traits, group):
    true, shown, _ = shown_of(world, group, 4000, 0., np.random.default_rng(0))
    assert np.intersect1d(true[group], shown[group]).size == 0
    at, rng = planted.places(true, traits, 0), np.random.default_rng(1)
    rows = shown.groupby(group).indices.values()
    own = np.array([rng.choice(r, 2, replace=False) for r in rows if len(r) > 1])
    others = rng.integers(4000, size=(20_000, 2))
    near = lambda pairs: np.mean([np.corrcoef(at[a], at[b])[0, 1] for a, b in pairs])
    assert abs(near(own) - near(others[:3000])) < .05
    together = shown_of(world, group, 4000, 1., np.random.default_rng(0))[1]
    assert near(np.array([r[:2] for r in together.groupby(group).indices.values() if len(r) > 1])) > near(others[:3000]) + .1

def test_words_are_replaced_in_the_share_asked_for():
    rng = np.random.default_rng(0)
    world = world_of_clothes(2000, rng)
    clean, noisy = (articles_table(world, share, np.random.default_rng(1)).detail_desc.str.split(' ') for share in (0., .3))
    changed = np.mean([a != b for x, y in zip(clean, noisy) for a, b in zip(x, y)])
    assert .25 < changed < .31


# behaviour

@pytest.mark.parametrize('domain', MAKERS)
def test_strength_zero_leaves_popularity_alone(domain, tmp_path):
    make = MAKERS[domain][0]
    quiet, loud = (truth(make(tmp_path/str(s), l1=s, l2=s, l3=s))['oracle'] for s in (0., 1.))
    figures = lambda oracle: oracle['ndcg@10' if domain == 'fashion' else 'auc']
    assert len(set(figures(quiet).values())) <= 2 and abs(figures(quiet)['L1+L2+L3'] - (figures(quiet)['none'] if domain == 'fashion' else .5)) < 1e-9
    assert figures(loud)['none'] + .02 < figures(loud)['L1'] and figures(loud)['L1'] + .02 < figures(loud)['L1+L2'] and figures(loud)['L1+L2'] + .02 < figures(loud)['L1+L2+L3']

def test_the_target_follows_the_true_utility_and_exposure_does_not(twins):
    folder = twins['music']
    log, worth = pd.read_csv(folder/'train.csv'), true_utility(folder/'planted')
    people, things = (pd.Index(pd.read_parquet(folder/'planted'/f'{name}.parquet').iloc[:, 0]) for name in ('users', 'items'))
    met = worth[people.get_indexer(log.msno), things.get_indexer(log.song_id)]
    assert auc_of(met, log.target.to_numpy()) > .85 and abs(met.mean() - (worth@items(folder).popularity.to_numpy()).mean()) < .3
    assert np.corrcoef(log.song_id.value_counts().reindex(things).fillna(0), items(folder).popularity)[0, 1] > .8

def test_a_layer_at_zero_does_not_move_purchases(tmp_path):
    folder = make_fashion(tmp_path, users=1500, items=400, events=45_000, l2=0.)
    log, people = pd.read_csv(folder/'transactions_train.csv', dtype=str), pd.read_parquet(folder/'planted'/'users.parquet').set_index('user')
    for k, layer in enumerate(LAYERS):
        at, taste = np.stack(items(folder)[layer]), np.stack(people[f'taste_{layer}'])
        near = (at[items(folder).index.get_indexer(log.article_id)]*taste[people.index.get_indexer(log.customer_id)]).sum(1)
        assert (abs(near.mean()) < .03) if layer == 'L2' else near.mean() > .3

def test_segments_care_for_their_layer_and_are_as_many_as_asked(twins):
    people = pd.read_parquet(twins['fashion']/'planted'/'users.parquet')
    assert np.allclose(people.segment.value_counts(normalize=True)[list(LAYERS)], [.4, .35, .25], atol=.08)
    assert (people[['w1', 'w2', 'w3']].to_numpy().argmax(1) == people.segment.str[1].astype(int) - 1).mean() > .99
    assert np.allclose(people[['w1', 'w2', 'w3']].sum(axis=1), 1) and np.stack(people.taste_L1).shape == (400, RANK)

def test_popularity_has_a_tail_and_can_be_flat(tmp_path):
    shares = [pd.read_csv(make_music(tmp_path/str(p), popularity=p)/'train.csv').song_id.value_counts(normalize=True).head(60).sum() for p in (0., 1., 2.)]
    assert shares[0] < .3 and shares[0] + .1 < shares[1] < shares[2]

def test_weeks_have_a_rhythm_and_articles_come_later(twins):
    log = pd.read_csv(twins['fashion']/'transactions_train.csv', dtype=dict(article_id=str), parse_dates=['t_dat'])
    first, born = log.groupby('article_id').t_dat.min(), items(twins['fashion']).born
    week = (first - pd.Timestamp('2018-09-26')).dt.days//7
    last = (log.groupby('article_id').t_dat.max() - pd.Timestamp('2018-09-26')).dt.days//7
    come = born.reindex(week.index)
    assert (week >= come).all() and ((last < come + LIFE) | (come < 0)).all() and (born >= 0).mean() == pytest.approx(NEW, abs=.01)
    per_day = log.groupby(log.t_dat.dt.day_of_week).size()
    assert per_day[6] > per_day[3]*.9 and per_day.max() > 1.15*per_day.min()

def test_equal_seeds_put_both_domains_into_one_space_of_taste():
    rng, places = np.random.default_rng(0), {}
    for world, traits in ((world_of_clothes, CLOTHES), (world_of_songs, SONGS)):
        codes = world(30_000, rng)
        mood = [t for t in traits if t.layer == 'L2' and t.moves][2]
        at = planted.places(codes, traits, seed=3)[:, RANK:2*RANK]
        places[mood.name] = places.get(mood.name, []) + [np.stack([at[codes[mood.name] == k].mean(0) for k in range(6)])]
    assert len(places['mood']) == 2 and np.corrcoef(places['mood'][0].ravel(), places['mood'][1].ravel())[0, 1] > .98
