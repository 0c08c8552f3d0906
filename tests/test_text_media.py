"Pictures of known colours, and everything that a folder of pictures may hold instead of one."
import json, struct, zlib
from io import BytesIO
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from matplotlib.colors import XKCD_COLORS
from PIL import Image, ImageDraw, PngImagePlugin
from recx.text.images import FAMILIES, MAX_PIXELS, PART_BYTES, PART_SIDE, PICTURES, WHOLE_BYTES, WHOLE_SIDE, dominant_colours, find_media, foreground, grid_of, measured_attributes, name_colours, open_image, request_images, to_lab

ONE_OF_EACH = {'black': '#101010', 'grey': '#858585', 'white': '#fefefe', 'red': '#cc1020', 'orange': '#f58a10', 'yellow': '#f5e020', 'green': '#188030', 'turquoise': '#30c8c0', 'blue': '#2050b0', 'purple': '#7020a0',
               'pink': '#f890b8', 'brown': '#7a4420', 'beige': '#e8d5b0'}


def garment(colour, background='#ededed', size=(300, 400), box=(90, 80, 209, 319)):
    image = Image.new('RGB', size, background)
    ImageDraw.Draw(image).rectangle(box, fill=colour)
    return image


def saved(image, path, **options):
    image.save(path, **options)
    return path


def png_claiming(path, width, height):
    "A PNG of a few bytes whose header claims `width` × `height` pixels."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b''))
    return path


def test_there_is_an_example_of_every_family(): assert set(ONE_OF_EACH) == set(FAMILIES)


@pytest.mark.parametrize('family, colour', ONE_OF_EACH.items())
def test_known_colours(tmp_path, family, colour):
    background = '#202020' if family == 'white' else '#ededed'
    found = measured_attributes(saved(garment(colour, background), tmp_path/'a.jpg', quality=90))
    assert found['main_colour'][0] == family and found['colours'][0][family] > .95 and found['pattern_contrast'][0] < .02
    json.dumps(found)


@pytest.mark.parametrize('ending, options', [('jpg', dict(quality=75)), ('png', {}), ('webp', dict(quality=80)), ('gif', {}), ('bmp', {}), ('tiff', {})])
def test_every_format(tmp_path, ending, options):
    found = measured_attributes(saved(garment('#2050b0'), tmp_path/f'a.{ending}', **options))
    assert found['main_colour'][0] == 'blue' and found['main_colour'][1] > .5


def modes():
    base = garment('#2050b0')
    transparent = base.convert('RGBA')
    transparent.putalpha(Image.fromarray(np.where((np.asarray(base) == (0xed,)*3).all(axis=-1), 0, 255).astype(np.uint8)))
    return {'cmyk.jpg': base.convert('CMYK'), 'cmyk.tiff': base.convert('CMYK'), 'palette.png': base.quantize(8), 'transparent.png': transparent, 'ycbcr.jpg': base.convert('YCbCr')}


@pytest.mark.parametrize('name', modes())
def test_modes(tmp_path, name):
    found = measured_attributes(saved(modes()[name], tmp_path/name))
    assert found['main_colour'][0] == 'blue' and len(request_images(tmp_path/name)) == 1


def test_transparent_palette_and_grey_with_alpha(tmp_path):
    image = Image.new('P', (100, 100), 0)
    image.putpalette([0, 0, 0, 200, 16, 30] + [0]*762)
    image.paste(1, (30, 30, 70, 70))
    image.save(tmp_path/'p.png', transparency=0)
    assert measured_attributes(tmp_path/'p.png')['main_colour'][0] == 'red'
    Image.new('LA', (50, 50), (130, 255)).save(tmp_path/'la.png')
    assert measured_attributes(tmp_path/'la.png')['main_colour'][0] == 'grey'
    Image.new('RGBA', (50, 50), (255, 0, 0, 0)).save(tmp_path/'none.png') # nothing of it can be seen
    assert measured_attributes(tmp_path/'none.png')['main_colour'][1] <= .5


def test_first_frame_of_an_animation(tmp_path):
    frames = [garment('#cc1020'), garment('#2050b0')]
    frames[0].save(tmp_path/'a.gif', save_all=True, append_images=frames[1:], duration=100)
    assert measured_attributes(tmp_path/'a.gif')['main_colour'][0] == 'red'


@pytest.mark.parametrize('ending', ['png', 'tiff'])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, ending):
    values = np.full((200, 200), 60000, np.uint16)
    values[50:150, 50:150] = 33000
    Image.fromarray(values).save(tmp_path/f'a.{ending}')
    found = measured_attributes(tmp_path/f'a.{ending}')
    assert found['main_colour'][0] == 'grey' and found['brightness'][0] == 'medium'


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((20, 20), np.float32)).save(tmp_path/'a.tiff')
    with pytest.raises(ValueError, match='32 bits'): open_image(tmp_path/'a.tiff')


def test_upright_and_without_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010e], exif[0x8825] = 6, 'secret place', {1: 'N'} # turned by 90°, description, position
    garment('#2050b0', size=(900, 600)).save(tmp_path/'a.jpg', exif=exif, comment=b'secret comment', icc_profile=b'secret profile')
    assert open_image(tmp_path/'a.jpg').size == (600, 900)
    for data in request_images(tmp_path/'a.jpg'):
        assert b'secret' not in data and b'Exif' not in data
        assert not Image.open(BytesIO(data)).getexif() and not {'comment', 'icc_profile', 'exif'} & set(Image.open(BytesIO(data)).info)
    text = PngImagePlugin.PngInfo()
    text.add_text('note', 'secret note')
    garment('#2050b0').save(tmp_path/'a.png', pnginfo=text)
    assert all(b'secret' not in data for data in request_images(tmp_path/'a.png'))


@pytest.mark.parametrize('content, reason', [(b'', '0 bytes'), (b'not a picture', 'cannot be read'), (b'\xff\xd8\xff\xe0', 'cannot be read'), (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'cannot be read')])
def test_no_picture(tmp_path, content, reason):
    (tmp_path/'a.jpg').write_bytes(content)
    for look in (measured_attributes, request_images):
        with pytest.raises(ValueError, match=reason) as e: look(tmp_path/'a.jpg')
        assert str(tmp_path) not in str(e.value) and 'a.jpg' in str(e.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ValueError, match='no such file'): request_images(tmp_path/'a.jpg')
    with pytest.raises(ValueError, match='no such file'): request_images(tmp_path)
    with pytest.raises(ValueError, match='image_folder'): find_media(tmp_path/'none', '1')
    with pytest.raises(ValueError, match='audio_folder'): find_media(tmp_path/'none', '1', ('mp3',))


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('width, height', [(50_000, 50_000), (10_000, 10_000), (0, 10), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_unopened(tmp_path, width, height):
    assert width*height > MAX_PIXELS or not width
    with pytest.raises(ValueError, match='more than|cannot be read'): open_image(png_claiming(tmp_path/'a.png', width, height))


def test_huge_picture(tmp_path):
    parts = request_images(saved(garment('#2050b0', size=(6000, 5000), box=(1500, 500, 4500, 4500)), tmp_path/'a.jpg', quality=40))
    assert len(parts) == 5 and max(Image.open(BytesIO(parts[0])).size) == WHOLE_SIDE and max(Image.open(BytesIO(parts[1])).size) == PART_SIDE


@pytest.mark.filterwarnings('ignore::UserWarning') # Pillow on truncated TIFF files
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 3000), places=st.lists(st.tuples(st.integers(0, 2999), st.integers(0, 255)), max_size=8), ending=st.sampled_from(['jpg', 'png', 'gif', 'webp', 'tiff', 'bmp']))
def test_damage_is_a_value_error_or_a_picture(tmp_path, cut, places, ending):
    garment('#2050b0', size=(60, 80), box=(20, 20, 40, 60)).save(buffer := BytesIO(), dict(jpg='jpeg').get(ending, ending))
    data = bytearray(buffer.getvalue()[:cut])
    for place, value in places:
        if place < len(data): data[place] = value
    (tmp_path/f'a.{ending}').write_bytes(data)
    try: assert measured_attributes(tmp_path/f'a.{ending}') and request_images(tmp_path/f'a.{ending}')
    except ValueError as e: assert f'a.{ending}' in str(e) and str(tmp_path) not in str(e)


@pytest.mark.parametrize('size', [(1, 1), (1, 700), (2000, 1), (3, 3), (600, 4)])
def test_odd_sizes(tmp_path, size):
    path = saved(Image.new('RGB', size, '#cc1020'), tmp_path/'a.png')
    assert measured_attributes(path)['main_colour'][0] == 'red' and measured_attributes(path)['main_colour'][1] <= .5
    assert 1 <= len(request_images(path)) <= 5


def test_bytes_are_bounded_and_equal_files_give_equal_bytes(tmp_path):
    path = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (1400, 1000, 3), dtype=np.uint8)), tmp_path/'a.png')
    whole, *parts = request_images(path)
    assert len(whole) <= WHOLE_BYTES and 2 <= len(parts) <= 4 and max(map(len, parts)) <= PART_BYTES
    assert (whole, *parts) == request_images(path)


@given(st.floats(1, 4000), st.floats(1, 4000))
def test_two_to_four_parts(width, height):
    rows, columns = grid_of(width, height)
    assert 2 <= rows*columns <= 4


def test_parts_hold_the_item(tmp_path):
    path = saved(garment('#cc1020', '#ffffff', (1200, 1600), (800, 1000, 1100, 1500)), tmp_path/'a.png')
    parts = [np.asarray(Image.open(BytesIO(p)).convert('RGB')).reshape(-1, 3) for p in request_images(path)[1:]]
    assert all(((p[:, 0] > 150) & (p[:, 1] < 90)).mean() > .6 for p in parts)


def test_where_the_border_is_not_plain(tmp_path):
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)).resize((300, 400), Image.Resampling.NEAREST)
    ImageDraw.Draw(scene).rectangle((90, 80, 209, 319), fill='#cc1020')
    found = measured_attributes(saved(scene, tmp_path/'a.png'))
    assert 'pattern_contrast' not in found and all(confidence <= .5 for _, confidence in found.values())
    assert foreground(open_image(tmp_path/'a.png')).box == (0, 0, 1, 1)


def test_shares(tmp_path):
    image = garment('#cc1020')
    ImageDraw.Draw(image).rectangle((90, 80, 209, 139), fill='#2050b0')
    shares, _ = measured_attributes(saved(image, tmp_path/'a.png'))['colours']
    assert list(shares) == ['red', 'blue'] and abs(shares['blue'] - .25) < .03 and sum(shares.values()) <= 1.001


def test_two_halves_have_no_main_colour(tmp_path):
    image = garment('#cc1020')
    ImageDraw.Draw(image).rectangle((90, 80, 149, 319), fill='#2050b0')
    assert measured_attributes(saved(image, tmp_path/'a.png'))['main_colour'][1] < .1


@pytest.mark.parametrize('relation, colours', [('neutral', '#101010 #858585'), ('monochrome', '#cc1020 #701018'), ('analogous', '#cc1020 #f5a010'), ('complementary', '#2050c0 #f0c030'), ('triadic', '#e01010 #10d010 #1010e0'), ('mixed', '#e01010 #10d010')])
def test_harmony(tmp_path, relation, colours):
    colours, image = colours.split(), garment('#cc1020')
    for i, colour in enumerate(colours): ImageDraw.Draw(image).rectangle((90, 80 + 240*i//len(colours), 209, 319), fill=colour)
    assert measured_attributes(saved(image, tmp_path/'a.png'))['colour_harmony'][0] == relation


def test_stripes_have_more_contrast_than_cloth_with_folds(tmp_path):
    x = np.linspace(0, 6*np.pi, 120)
    folds = garment('#2050b0')
    folds.paste(Image.fromarray(np.clip(np.array([32, 80, 176]) + 20*np.sin(x)[None, :, None] + np.zeros((240, 1, 1)), 0, 255).astype(np.uint8)), (90, 80))
    stripes = garment('#2050b0')
    for y in range(80, 320, 16): ImageDraw.Draw(stripes).rectangle((90, y, 209, y + 7), fill='#f0f0f0')
    values = [measured_attributes(saved(image, tmp_path/'a.png'))['pattern_contrast'][0] for image in (folds, stripes)]
    assert values[0] < .02 and values[1] > .15


@given(st.lists(st.tuples(*[st.integers(0, 255)]*3), min_size=1, max_size=50))
def test_every_colour_has_a_name(colours):
    families, margins = name_colours(to_lab(colours))
    assert set(families) <= set(FAMILIES) and ((margins >= 0) & (margins <= 1)).all()


def test_names_as_people_give_them():
    "The XKCD colour survey's names that end in a family and hint at no other; more of them are met where the margin is wider."
    surveyed = [(name.removeprefix('xkcd:').replace('gray', 'grey').split(), colour) for name, colour in XKCD_COLORS.items()]
    judged = [(words[-1], colour) for words, colour in surveyed if words[-1] in FAMILIES and not any(w in FAMILIES or w.endswith(('ish', 'y')) for w in words[:-1])]
    families, margins = name_colours(to_lab([[int(colour[i:i + 2], 16) for i in (1, 3, 5)] for _, colour in judged]))
    right = np.array([found == said for found, (said, _) in zip(families, judged)])
    unsure, sure = right[margins < .25].mean(), right[margins == 1].mean()
    print(f'{len(judged)} colours: {right.mean():.3f} named alike; margin below 0.25: {unsure:.3f}, 1: {sure:.3f}')
    assert len(judged) > 300 and right.mean() > .9 and unsure < .75 and sure > .98


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 255)]*3), min_size=1, max_size=9))
def test_shares_add_up(colours):
    found = dominant_colours(to_lab(np.array(colours*5)))
    assert abs(found.share.sum() - 1) < 1e-9 and len(found.family) == len(found.share)


@given(st.text(max_size=30))
def test_no_id_leads_out_of_the_folder(tmp_path_factory, item):
    folder = tmp_path_factory.getbasetemp()/'in'
    folder.mkdir(exist_ok=True)
    (folder.parent/'out.jpg').touch()
    assert find_media(folder, item) is None and find_media(folder, '../out') is None and find_media(folder, str(folder.parent/'out')) is None


def test_layouts(tmp_path):
    for place in ('010/0108775015.jpg', 'B07.JPG', 'images/011/0110065001.jpg', 'images/b.webp', '42.png'):
        (tmp_path/place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/place).touch()
    found = {item: find_media(tmp_path, item, PICTURES) for item in ('0108775015', '108775015', 108775015, 'B07', '110065001', 'b', '42', 'B08')}
    assert {item: path and path.relative_to(tmp_path).as_posix() for item, path in found.items()} == {
        '0108775015': '010/0108775015.jpg', '108775015': '010/0108775015.jpg', 108775015: '010/0108775015.jpg', 'B07': 'B07.JPG', '110065001': 'images/011/0110065001.jpg', 'b': 'images/b.webp', '42': '42.png', 'B08': None}
