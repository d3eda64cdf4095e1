"""Which of COCO's 80 object categories a caption's words name.

COCO's category names, their plain synonyms, kinds and plurals, and word pairs that mean something
else than their parts. One rule decided what is listed: a word counts where it can hardly mean
anything but objects of these categories. What may as well be another thing ("plant", "bag",
"glass", "meter") is not listed; a word of some categories ("bike", "computer") is under each.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from har_jax.metrics.word_lists import Words, refuse_text

VERSION = 1
"""Of the lists: two values are comparable where it is the same."""

# A category, then the other words for it; plurals are made from them (`_plural`).
_WORDS = """
person: people, man, woman, boy, girl, child, kid, baby, toddler, infant, lady, gentleman, guy
  adult, teenager, teen, male, female, mother, mom, mommy, mum, father, dad, daddy, son, daughter
  brother, sister, grandmother, grandma, grandfather, grandpa, husband, wife, bride, groom
  player, batter, pitcher, catcher, umpire, hitter, fielder, outfielder, infielder, goalie
  goalkeeper, referee, athlete, skier, snowboarder, skateboarder, skater, surfer, swimmer, rider
  biker, cyclist, bicyclist, motorcyclist, jockey, driver, passenger, pedestrian, commuter
  tourist, traveler, traveller, hiker, chef, baker, worker, officer, policeman, policewoman
  fireman, firefighter, soldier, farmer, cowboy, cowgirl, cow boy, cow girl, waiter, waitress
  vendor, shopper, customer, businessman, businesswoman, student, teacher, doctor, nurse
  spectator, bystander, onlooker, dancer, musician, photographer, ball player
bicycle: bike, mountain bike
car: automobile, sedan, hatchback, suv, minivan, taxi, taxi cab, limousine, limo, station wagon
  police car, jeep, van
motorcycle: motorbike, motor bike, motor cycle, dirt bike, moped, scooter, vespa, bike
airplane: plane, air plane, aeroplane, aircraft, airliner, jetliner, jet, jumbo jet, biplane
  seaplane, passenger plane, passenger jet, passenger airplane
bus: school bus, double decker, double decker bus, commuter bus, minibus, passenger bus, tram
  trolley, streetcar, street car, trolley car
train: locomotive, passenger train, commuter train, train car, rail car, railway car, subway car
  passenger car, tram, trolley, streetcar, street car, trolley car
truck: pickup, pick up truck, lorry, semi, semi truck, tractor trailer, fire engine
  flat bed truck, truck bed, jeep, van
boat: ship, sailboat, sail boat, rowboat, row boat, canoe, kayak, ferry, yacht, motorboat
  speedboat, motor boat, speed boat, tugboat, tug boat, gondola, catamaran, barge, dinghy, raft
traffic light: traffic signal, stoplight, stop light, traffic signal light
fire hydrant: hydrant, water hydrant, fireplug
stop sign
parking meter
bench
bird: duck, goose, swan, pigeon, seagull, gull, parrot, owl, eagle, hawk, crow, raven, sparrow
  robin, flamingo, pelican, heron, ostrich, penguin, peacock, rooster, hen, hummingbird, finch
  cockatoo, parakeet, cardinal, woodpecker, stork, duckling, gosling
cat: kitten, kitty
dog: puppy, pup, doggy, doggie, dachshund, poodle, bulldog, labrador, retriever, chihuahua
  terrier, dalmatian, collie, beagle, corgi
horse: pony, foal, stallion, mare, colt
sheep: lamb, ewe, ram
cow: cattle, bull, ox, heifer, steer
elephant
bear
zebra
giraffe
backpack: back pack, knapsack, rucksack, book bag, luggage, baggage
umbrella: parasol
handbag: hand bag, purse, pocketbook, luggage, baggage
tie: necktie, neck tie, bow tie, bowtie
suitcase: suit case, luggage, baggage
frisbee: flying disc, flying disk
skis
snowboard: snow board
sports ball: ball, baseballs, footballs, basketballs, volleyballs, softballs
kite
baseball bat: bat
baseball glove: baseball mitt, mitt, catcher 's mitt, catchers mitt, catcher 's glove
skateboard: skate board
surfboard: surf board, boogie board, bodyboard, body board
tennis racket: racket, racquet, tennis racquet
bottle
wine glass: wineglass, champagne glass, glass of wine, glasses of wine
cup: mug, teacup, tea cup, coffee cup, coffee mug, glass of water, glass of milk, glass of beer
  glass of juice, glass of orange juice
fork
knife
spoon: table spoon, tea spoon, tablespoon, teaspoon
bowl: dog bowl, cat bowl
banana
apple
sandwich: burger, hamburger, cheeseburger, panini
orange: orange slice, orange peel, mandarin orange, navel orange
broccoli
carrot: baby carrot
hot dog: hotdog, corn dog, chili dog
pizza
donut: doughnut
cake: cupcake, cup cake, cheesecake, cheese cake, carrot cake, banana cake, apple cake
  orange cake
chair: armchair, arm chair, wheelchair, wheel chair, stool, barstool, recliner, computer chair
couch: sofa, loveseat, love seat, futon
potted plant: houseplant, house plant, potted flower, potted tree, potted palm
bed: bunk bed, bunkbed
dining table: table, tabletop, table top
toilet: urinal, commode, toilet seat, toilet bowl, toilet lid, toilet tank
tv: television, tv set, television set, tv screen, television screen, monitor, computer monitor
  computer screen, desktop computer, desk top computer, computer
laptop: laptop computer, notebook computer, macbook, netbook, apple laptop, computer
mouse: computer mouse
remote: remote control, remote controller, tv remote, television remote, wii remote, wiimote
  wii controller, game controller, video game controller, controller
keyboard: computer keyboard, laptop keyboard
cell phone: cellphone, phone, mobile phone, smartphone, smart phone, iphone, flip phone
microwave: microwave oven
oven: stove, stovetop, stove top, pizza oven, toaster oven
toaster: toaster oven
sink: washbasin, wash basin
refrigerator: fridge, freezer
book: textbook, cookbook
clock: clock tower, alarm clock
vase
scissors: scissor
teddy bear: teddy, stuffed bear, stuffed teddy bear, toy bear, plush bear
hair drier: hair dryer, hairdryer, hairdrier, blow dryer, blow drier
toothbrush: tooth brush
"""
# Phrases with a word of the above that name no object of these categories.
_OTHERS = """
man made, snow man, gingerbread man, lady bug, baby stroller, baby carriage, baby crib, baby food
cd player, dvd player, record player, music player, mp3 player, video player, media player
bike rack, bike lane, bike path, bike trail, bike helmet, bicycle rack, bicycle lane
bicycle path, bicycle helmet, exercise bike, car park, car seat, cable car, bus stop, bus station
bus terminal, bus shelter, bus lane, bus depot, train track, train station, train depot
train platform, train yard, train bridge, train rail, train line, train crossing, train tunnel
train stop, train set, boat dock, boat ramp, boat house, boat launch, boat slip, truck stop
semi circle, jet ski, jet stream, bird cage, bird house, bird feeder, bird bath, bird nest
bird seed, cat food, cat house, dog food, dog house, dog park, dog bed, cat bed, horse shoe
horse trailer, rocking horse, sea horse, carousel horse, cow hide, zebra crossing, zebra print
zebra stripe, rubber duck, rubber ducky, tie dye, tie dyed, zip tie, disco ball, meat ball
cannon ball, cotton ball, crystal ball, ball field, ball game, ball park, ball cap, ball room
oven mitt, fork lift, pitch fork, fork in the road, super bowl, cup holder, world cup
banana bread, banana split, banana pepper, apple pie, apple juice, apple cider, apple sauce
apple logo, pine apple, orange juice, orange soda, orange sauce, pizza box, pizza cutter
pizza shop, pizza place, pizza parlor, pizza restaurant, pizza pan, donut shop, doughnut shop
donut store, pan cake, crab cake, rice cake, chair lift, foot stool, flower bed, bed of, beds of
river bed, pool table, table tennis, table cloth, bedside table, night table, changing table
table lamp, tv stand, television stand, tv show, tv channel, laptop bag, laptop case
computer desk, computer table, computer lab, computer room, computer game, computer part
computer equipment, mouse pad, mickey mouse, remote control car, remote control plane
remote area, remote location, piano keyboard, music keyboard, musical keyboard, pay phone
phone booth, phone box, phone pole, book shelf, book case, book store, note book, toilet paper
toilet brush, toilet tissue, toilet roll, toothbrush holder, tooth brush holder, luggage cart
luggage carousel, luggage rack, baggage claim, baggage cart, baggage carousel, motorcycle helmet
bottle opener, bottle cap, ski bat, knife block, sink hole, kite board, kite boarder
"""
_PLURALS = {
    "person": "persons",
    "people": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "goose": "geese",
    "ox": "oxen",
    "mouse": "mice",
    "knife": "knives",
    "cattle": "cattle",
    "sheep": "sheep",
    "aircraft": "aircraft",
    "bus": "buses busses",
    "scissors": "scissors",
    "skis": "skis",
    "luggage": "luggage",
    "baggage": "baggage",
    "broccoli": "broccoli",
    "clothes": "clothes",
    "mare": "mares",
    "calf": "calves",
    "wife": "wives",
}
# "A baby elephant" is no person. "Calf" alone is a cow's, an elephant's or of a leg.
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_QUALIFIERS = (
    "baby adult mother mommy mama momma mom father daddy papa dad parent male female boy girl"
)
_PAIRS = ("mother and baby", "baby and mother", "adult and baby", "baby and adult", "mom and baby")
# "Orange" is a fruit, or a colour.
_COLOURS = """
red orange yellow green blue purple pink white black brown gray grey tan silver gold teal
"""
_TOLD = "in is are was be wearing bright dark light pale neon painted colored all"
_AFTER = """
and or on in with is are was sitting sits laying lying resting next near that which at to by from
beside sliced cut peeled for inside under over being has it for along while as
"""


def _plural(word: str) -> str:
    """The plural forms of a word, with spaces between them."""
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("man"):
        return word[:-3] + "men"
    if word.endswith(("s", "x", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _forms(phrase: str) -> Iterator[tuple[str, ...]]:
    """A phrase as words, and with its last word in the plural."""
    *first, last = phrase.split()
    for form in (last, *_plural(last).split()):
        yield *first, form


def _listed(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split(",")]


@functools.cache
def _table() -> tuple[dict[tuple[str, ...], tuple[str, ...]], dict[str, int]]:
    """({phrase: its categories}, {first word of phrases: words of the longest}); a phrase that
    names none has no categories."""
    table: dict[tuple[str, ...], tuple[str, ...]] = {}

    def add(phrase: str, *categories: str) -> None:
        for form in _forms(phrase):
            table[form] = tuple(dict.fromkeys((*table.get(form, ()), *categories)))

    for category, words in _categories().items():
        for word in dict.fromkeys((category, *words)):
            add(word, category)
        for word in (category, *words) if category in _ANIMALS else ():
            for qualifier in (*_QUALIFIERS.split(), *_PAIRS):
                add(f"{qualifier} {word}", category)
    for qualifier in (*_QUALIFIERS.split(), *_PAIRS):
        for word in ("animal", "cub", "calf"):
            add(f"{qualifier} {word}")
    for phrase in _listed(_OTHERS):
        add(phrase)
    longest: dict[str, int] = {}
    for phrase in table:
        longest[phrase[0]] = max(longest.get(phrase[0], 0), len(phrase))
    return table, longest


@functools.cache
def _categories() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in _WORDS.strip().splitlines():
        if line.startswith("  "):
            found[next(reversed(found))] += _listed(line)
        else:
            category, _, words = line.partition(":")
            found[category.strip()] = _listed(words) if words else []
    return found


def categories() -> tuple[str, ...]:
    """COCO's 80 object categories, in the order of their ids."""
    return tuple(_categories())


def mentions(caption: Words) -> list[tuple[str, tuple[str, ...]]]:
    """The objects that a caption names, in order: (the words of it, the categories that they may
    mean), once for each time.

    At each place the longest phrase that is listed counts. Words with hyphens are their parts.

    Raises:
      UserError: a text instead of words.
    """
    refuse_text(caption)
    table, longest = _table()
    words = [part for word in caption for part in word.split("-") if part]
    found, i = [], 0
    while i < len(words):
        for n in range(min(longest.get(words[i], 0), len(words) - i), 0, -1):
            phrase = tuple(words[i : i + n])
            if phrase in table:
                if table[phrase] and (phrase != ("orange",) or _is_fruit(words, i)):
                    found.append((" ".join(phrase), table[phrase]))
                i += n
                break
        else:
            i += 1
    return found


def _is_fruit(words: list[str], i: int) -> bool:
    """Whether "orange" at place i is the fruit: neither told of a thing nor beside a colour, and
    what follows is no noun."""
    colours = _COLOURS.split()
    before, after = words[max(0, i - 2) : i], words[i + 1 : i + 3]
    if before and before[-1] in (*colours, *_TOLD.split()):
        return False
    if len(before) == 2 and before[1] in ("and", "or") and before[0] in colours:
        return False
    if len(after) == 2 and after[0] in ("and", "or") and after[1] in colours:
        return False
    return not after or after[0] in _AFTER.split()
