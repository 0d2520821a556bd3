"""English lines and pages rendered with known text, deterministic by seed.

Lines vary in font, size, colour, contrast, rotation, blur and noise; they are the accuracy data of the text
recogniser. Fonts are those of the Debian packages fonts-dejavu-core, fonts-liberation and fonts-freefont-ttf that are
installed, else the one bundled with Pillow; `fonts()` says which, and the results file repeats it.
"""

import string
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

FloatArray = npt.NDArray[np.float32]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_ROOT = Path("/usr/share/fonts/truetype")
FONT_FILES = (
    "dejavu/DejaVuSans.ttf", "dejavu/DejaVuSans-Bold.ttf", "dejavu/DejaVuSerif.ttf", "dejavu/DejaVuSansMono.ttf",
    "liberation/LiberationSans-Regular.ttf", "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSans-Italic.ttf", "liberation/LiberationSerif-Regular.ttf",
    "liberation/LiberationSerif-Bold.ttf", "liberation/LiberationMono-Regular.ttf",
    "freefont/FreeSans.ttf", "freefont/FreeSerif.ttf",
)  # fmt: skip

WORDS = """
about above across action address after again against agree almost alone already also although always amount animal
another answer appear apple area arrive article autumn average balance basic beautiful because become before begin
behind believe below benefit between beyond birthday black board bottom branch bread break bridge bright bring brother
budget build business button calendar camera capital careful carry castle catch center certain change chapter cheap
check child choice circle citizen clean clear climb clock close cloud coffee color column comfort common company
complete computer concert condition consider control cook copper corner correct cotton council country couple courage
course cover create credit culture current customer damage dance danger daughter decide degree deliver depend design
detail develop device dinner direct discover distance doctor dollar double dozen dream drive during early earth easily
eight electric empty energy engine enjoy enough entire equal evening event every exact example except exercise expect
explain express family farmer father favor feature field figure final finger finish flight floor flower follow foreign
forest forget forward freedom friend front future garden general gentle glass global golden government grain great
green ground group grow guess habit handle happen harbor health heart heavy height history holiday hospital hotel hour
house human hundred hungry husband image imagine important increase industry inside invite island january journey
judge kitchen know ladder language large later laugh leader learn leather lesson letter level library light listen
little local machine manage market matter measure medicine member memory message metal middle minute modern moment
money month morning mother mountain music nation nature needle never night noble north notice number object ocean
offer office often opinion orange order ordinary other outside owner packet paper parent people perfect perhaps person
picture planet plant please pocket police position possible power practice present pretty price print problem process
product promise protect provide public purple quality quarter question quick quiet railway rather reach reason receive
record region regular remember repeat report result return river sample school science season second secret section
sentence separate seven several shadow share short shoulder silver simple sister small smooth social society special
spring square station steel stone story straight strange stream street strong student subject sudden summer support
surface system table teacher theory thick thing think third thought thousand through ticket together tomorrow touch
toward travel trouble under understand until useful usual valley value various village visit voice water weather
weight welcome western wheel while white whole window winter within without woman wonder worker world writer yellow
yesterday young
""".split()  # noqa: SIM905  a list of five hundred quoted words helps nobody


@cache
def fonts() -> tuple[str, ...]:
    """The font files used, in a fixed order; empty where only Pillow's bundled font is left."""
    return tuple(name for name in FONT_FILES if (FONT_ROOT / name).is_file())


@cache
def _font(index: int, size: int) -> Font:
    names = fonts()
    return ImageFont.truetype(FONT_ROOT / names[index], size) if names else ImageFont.load_default(size)


def sentence(rng: np.random.Generator, low: int, high: int) -> str:
    """Words, some capitalised, with numbers and punctuation: between `low` and `high` characters."""
    while True:
        parts: list[str] = []
        while len(" ".join(parts)) < low:
            draw = rng.random()
            if draw < 0.15:
                parts.append(str(rng.integers(0, 10 ** int(rng.integers(1, 5)))))
                continue
            word = str(rng.choice(WORDS))
            if draw < 0.40:
                word = word.capitalize()
            elif draw < 0.48:
                word = word.upper()
            if rng.random() < 0.12:
                word += str(rng.choice(list(",.:!?")))
            parts.append(word)
        text = " ".join(parts)
        if len(text) <= high and text[0] in string.ascii_letters + string.digits:
            return text


def _colours(rng: np.random.Generator, contrast: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Background and ink, RGB 0..255, at least `contrast` apart in mean brightness; light paper or dark."""
    while True:
        paper, ink = rng.integers(0, 256, (2, 3))
        if rng.random() < 0.6:
            paper = 255 - paper // 5
            ink = ink // 2
        if abs(int(paper.mean()) - int(ink.mean())) >= contrast:
            return tuple(paper.tolist()), tuple(ink.tolist())


def line_image(text: str, rng: np.random.Generator) -> Image.Image:
    """One rendered line, RGB, any size."""
    size = int(rng.integers(16, 43))
    font = _font(int(rng.integers(len(fonts()) or 1)), size)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    paper, ink = _colours(rng, contrast=55)
    margin_x, margin_y = rng.integers(2, 8), rng.integers(2, max(3, size // 6))
    width, height = right - left + 2 * margin_x, bottom - top + 2 * margin_y
    canvas = Image.new("RGB", (int(width), int(height)), paper)
    ImageDraw.Draw(canvas).text((int(margin_x) - left, int(margin_y) - top), text, font=font, fill=ink)
    angle = float(rng.uniform(-2.0, 2.0))
    canvas = canvas.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    return _degrade(canvas, rng, blur=1.3 * size / 32)


def _degrade(canvas: Image.Image, rng: np.random.Generator, blur: float) -> Image.Image:
    """Blur (up to `blur` pixels), uneven light and sensor noise."""
    if rng.random() < 0.6:
        canvas = canvas.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, blur))))
    pixels = np.asarray(canvas, np.float32)
    left, right = rng.uniform(-15, 15, 2)
    light = np.linspace(left, right, pixels.shape[1], dtype=np.float32)[None, :, None]
    noise = rng.uniform(0, 12) * rng.standard_normal(pixels.shape, np.float32)
    return Image.fromarray(np.clip(pixels + light + noise, 0, 255).astype(np.uint8))


def page_image(rng: np.random.Generator, size: int) -> Image.Image:
    """A square page with lines of text, some coloured panels behind them, RGB."""
    paper, ink = _colours(rng, contrast=90)
    canvas = Image.new("RGB", (size, size), paper)
    draw = ImageDraw.Draw(canvas)
    y = int(rng.integers(5, 40))
    while True:
        height = int(rng.integers(14, 44))
        if y + 1.4 * height > size:
            break
        font = _font(int(rng.integers(len(fonts()) or 1)), height)
        text = sentence(rng, 4, 60)
        x = int(rng.integers(5, size // 2))
        colour: tuple[int, ...] = ink
        if rng.random() < 0.2:
            panel, colour = _colours(rng, contrast=90)
            draw.rectangle((x - 5, y - 3, x + font.getbbox(text)[2] + 5, y + int(1.35 * height)), fill=panel)
        draw.text((x, y), text, font=font, fill=colour)
        y += int(height * rng.uniform(1.4, 3.0))
    canvas = canvas.rotate(float(rng.uniform(-3, 3)), Image.Resampling.BICUBIC, fillcolor=paper)
    return _degrade(canvas, rng, blur=1.0)
