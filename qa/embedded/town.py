"""What is written in the registers of the town: its relations, its words, its idle remarks.

Data only; `build_corpus.py` reads it. One row of RELATIONS is one thing that can be asked.
The slots of a sentence form:

    {S}    the entity as a subject: a name, a description ("the brig") or a pronoun
    {P}    the same as a possessive
    {O}    the same as an object
    {N}    the same where a pronoun will not do
    {her}  always the possessive pronoun, "her" or "its"
    {a}    the answer

A sentence form is a clause: no capital, no full stop, no comma, so that clauses can be joined.
In a question {e} is the entity's name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    name: str
    kind: str  # of the entity: ship, officer or firm
    type: str  # of the answer: what a distractor has to be too
    sentences: tuple[str, ...]
    questions: tuple[str, ...]  # asked in every split
    test_questions: tuple[str, ...]  # asked in the test split alone


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    """A list written with slashes and line breaks between its members."""
    return [phrase.strip() for phrase in text.strip().replace("\n", "/").split("/")]


RELATIONS = (
    # ---------------------------------------------------------------- ships
    Relation(
        "captain",
        "ship",
        "person",
        (
            "{S} was commanded by {a}",
            "{S} sailed under Captain {a}",
            "{P} master was {a}",
            "{a} had the command of {O}",
            "the clerk entered {a} as master of {N}",
        ),
        (
            "Who commanded {e}?",
            "Who was the captain of {e}?",
            "Under which captain did {e} sail?",
            "Who was the master of {e}?",
        ),
        ("Who gave the orders on board {e}?", "Which person was in charge of {e}?"),
    ),
    Relation(
        "home_port",
        "ship",
        "port",
        (
            "{S} was registered at {a}",
            "{S} belonged to the port of {a}",
            "{P} home port was {a}",
            "{S} hailed from {a}",
            "{a} was the home port of {N}",
        ),
        (
            "What was the home port of {e}?",
            "Where was {e} registered?",
            "To which port did {e} belong?",
            "Where did {e} hail from?",
        ),
        ("Which place did {e} call home?", "In the register of which town was {e} entered?"),
    ),
    Relation(
        "destination",
        "ship",
        "port",
        (
            "{S} was bound for {a}",
            "{P} next port of call was {a}",
            "{S} cleared outward for {a}",
            "{S} had orders for {a}",
            "from here {S} was to go on to {a}",
        ),
        (
            "Where was {e} bound?",
            "What was the destination of {e}?",
            "For which port did {e} clear outward?",
            "To which place was {e} to go next?",
        ),
        (
            "Where was {e} expected after leaving the harbour?",
            "At which port was the voyage of {e} meant to end?",
        ),
    ),
    Relation(
        "cargo",
        "ship",
        "goods",
        (
            "{S} brought in {a}",
            "{S} arrived laden with {a}",
            "{S} landed {a}",
            "{P} inward cargo was made up of {a}",
            "the porters carried {a} ashore from {O}",
        ),
        (
            "What did {e} bring in?",
            "What was the inward cargo of {e}?",
            "With what did {e} arrive laden?",
            "Which goods did {e} land?",
        ),
        (
            "What merchandise came into the harbour in {e}?",
            "What was unloaded from {e}?",
        ),
    ),
    Relation(
        "lading",
        "ship",
        "goods",
        (
            "{S} took on {a} for the voyage out",
            "{S} loaded {a} for the next passage",
            "{P} outward lading was made up of {a}",
            "{a} were put aboard {O} before she left",
            "{S} was to carry away {a}",
        ),
        (
            "What did {e} take on for the voyage out?",
            "What was the outward lading of {e}?",
            "Which goods did {e} load for the next passage?",
            "What was {e} to carry away?",
        ),
        (
            "What merchandise went out of the harbour in {e}?",
            "With what was the hold of {e} filled before sailing?",
        ),
    ),
    Relation(
        "tonnage",
        "ship",
        "tons",
        (
            "{S} measured {a}",
            "{S} was rated at {a}",
            "the surveyor put {O} at {a}",
            "{P} burden was {a}",
            "{S} was a vessel of {a}",
        ),
        (
            "What was the tonnage of {e}?",
            "How many tons did {e} measure?",
            "At what tonnage was {e} rated?",
            "What was the burden of {e}?",
        ),
        ("How big was {e}?", "What size did the surveyor find {e} to be?"),
    ),
    Relation(
        "arrival",
        "ship",
        "date",
        (
            "{S} came in on {a}",
            "on {a} {S} crossed the bar",
            "{S} dropped anchor on {a}",
            "the arrival of {N} is entered under {a}",
            "{S} reached the harbour on {a}",
        ),
        (
            "When did {e} arrive?",
            "On what date did {e} come in?",
            "On which day did {e} reach the harbour?",
            "What was the date of the arrival of {e}?",
        ),
        ("When did {e} enter port?", "Which day saw {e} come to anchor?"),
    ),
    Relation(
        "departure",
        "ship",
        "date",
        (
            "{S} put to sea on {a}",
            "{S} sailed on {a}",
            "on {a} {S} weighed anchor",
            "the departure of {N} is entered under {a}",
            "{S} left the harbour on {a}",
        ),
        (
            "When did {e} depart?",
            "On what date did {e} sail?",
            "On which day did {e} put to sea?",
            "What was the date of the departure of {e}?",
        ),
        (
            "When did {e} leave port?",
            "Which day saw {e} go out past the pier?",
        ),
    ),
    Relation(
        "berth",
        "ship",
        "quay",
        (
            "{S} made fast at {a}",
            "{S} lay at {a}",
            "{S} was given a berth at {a}",
            "{P} moorings were at {a}",
            "room was found for {O} at {a}",
        ),
        (
            "Where was {e} moored?",
            "Where did {e} make fast?",
            "At which landing did {e} lie?",
            "Where was {e} given a berth?",
        ),
        (
            "Where was {e} tied up?",
            "To which landing were the mooring ropes of {e} made fast?",
        ),
    ),
    Relation(
        "repairs",
        "ship",
        "quay",
        (
            "{S} was repaired at {a}",
            "{S} was put to rights at {a}",
            "{P} repairs were done at {a}",
            "the carpenters mended {O} at {a}",
            "the mending of {N} was done at {a}",
        ),
        (
            "Where was {e} repaired?",
            "Where was {e} put to rights?",
            "Where did the carpenters mend {e}?",
            "At which landing were the repairs of {e} done?",
        ),
        (
            "Where did workmen patch up {e}?",
            "Where was {e} made seaworthy again?",
        ),
    ),
    Relation(
        "owner",
        "ship",
        "firm",
        (
            "{S} was the property of {a}",
            "{S} was owned by {a}",
            "{P} owners were {a}",
            "{a} held every share in {O}",
            "the freight of {N} was paid to {her} owners {a}",
        ),
        (
            "Who owned {e}?",
            "To which firm did {e} belong?",
            "Whose property was {e}?",
            "Who held the shares in {e}?",
        ),
        ("Which merchants possessed {e}?", "For whose profit did {e} sail?"),
    ),
    Relation(
        "builder",
        "ship",
        "person",
        (
            "{S} was built by {a}",
            "{S} came from the yard of {a}",
            "the shipwright {a} had laid down {O}",
            "{P} builder was {a}",
            "{a} had launched {O}",
        ),
        (
            "Who built {e}?",
            "From whose yard did {e} come?",
            "Which shipwright laid down {e}?",
            "Who was the builder of {e}?",
        ),
        ("Who constructed {e}?", "Whose handiwork was {e}?"),
    ),
    Relation(
        "pilot",
        "ship",
        "person",
        (
            "{a} piloted {O} through the shoals",
            "{S} took {a} as pilot",
            "{P} pilot was {a}",
            "{S} was brought through the shoals by the pilot {a}",
            "{a} earned the pilotage of {N}",
        ),
        (
            "Who piloted {e}?",
            "Who was the pilot of {e}?",
            "Whom did {e} take as pilot?",
            "Who brought {e} through the shoals?",
        ),
        ("Who guided {e} past the sandbanks?", "Who showed {e} the way up the channel?"),
    ),
    Relation(
        "duty",
        "ship",
        "money",
        (
            "{S} paid {a} in duty",
            "the customs took {a} from {O}",
            "{P} dues came to {a}",
            "{S} was charged {a} at the customs",
            "duty of {a} was levied on {O}",
        ),
        (
            "How much duty did {e} pay?",
            "What sum did the customs take from {e}?",
            "To how much did the dues of {e} come?",
            "How much was {e} charged at the customs?",
        ),
        ("What did it cost {e} to satisfy the customs?", "How much tax was collected from {e}?"),
    ),
    Relation(
        "freight",
        "ship",
        "money",
        (
            "{S} earned {a} in freight",
            "{P} freight came to {a}",
            "the shippers paid {O} {a}",
            "{a} was the freight of {N}",
            "{S} made {a} by the voyage",
        ),
        (
            "How much freight did {e} earn?",
            "To how much did the freight of {e} come?",
            "What sum did the shippers pay {e}?",
            "How much did {e} make by the voyage?",
        ),
        (
            "What income did the voyage of {e} bring?",
            "How much did {e} take for carrying goods?",
        ),
    ),
    Relation(
        "crew",
        "ship",
        "hands",
        (
            "{S} was worked by {a}",
            "{S} shipped {a}",
            "{P} muster roll named {a}",
            "{a} signed the articles of {N}",
            "{S} had a crew of {a}",
        ),
        (
            "How many were there in the crew of {e}?",
            "How many hands did {e} ship?",
            "By how many was {e} worked?",
            "How many did the muster roll of {e} name?",
        ),
        ("How many sailors served in {e}?", "How strongly was {e} manned?"),
    ),
    Relation(
        "delay",
        "ship",
        "cause",
        (
            "{S} was held back by {a}",
            "{S} was kept in port by {a}",
            "the sailing of {N} was put off on account of {a}",
            "{S} lost a week through {a}",
            "{P} departure was delayed by {a}",
        ),
        (
            "Why was {e} delayed?",
            "What kept {e} in port?",
            "For what reason was the sailing of {e} put off?",
            "What held {e} back?",
        ),
        ("What stopped {e} from leaving on time?", "Through what was {e} so late in getting away?"),
    ),
    # ------------------------------------------------- people of the town's service
    Relation(
        "office",
        "officer",
        "office",
        (
            "{S} served the town as {a}",
            "{S} held the post of {a}",
            "{S} was sworn in as {a}",
            "the office of {a} was given to {O}",
            "the council had chosen {O} as {a}",
        ),
        (
            "What office did {e} hold?",
            "Which post was given to {e}?",
            "As what did {e} serve the town?",
            "As what was {e} sworn in?",
        ),
        ("What was the occupation of {e}?", "In what capacity did the council employ {e}?"),
    ),
    Relation(
        "predecessor",
        "officer",
        "person",
        (
            "{S} succeeded {a}",
            "{S} took over the keys from {a}",
            "{P} predecessor was {a}",
            "before {O} the post had belonged to {a}",
            "{a} had left the post to {O}",
        ),
        (
            "Whom did {e} succeed?",
            "Who was the predecessor of {e}?",
            "Who had the post before {e}?",
            "From whom did {e} take over?",
        ),
        ("Who made way for {e}?", "Whose successor was {e}?"),
    ),
    Relation(
        "birthplace",
        "officer",
        "port",
        (
            "{S} was born at {a}",
            "{S} was a native of {a}",
            "{P} birthplace was {a}",
            "{a} was the birthplace of {N}",
            "{S} had come into the world at {a}",
        ),
        (
            "Where was {e} born?",
            "What was the birthplace of {e}?",
            "Of which place was {e} a native?",
            "Where did {e} come into the world?",
        ),
        ("From which town did {e} originally come?", "Where did the life of {e} begin?"),
    ),
    Relation(
        "schooling",
        "officer",
        "port",
        (
            "{S} had gone to school at {a}",
            "{S} was educated at {a}",
            "{P} school years were spent at {a}",
            "the school at {a} had taught {O}",
        ),
        (
            "Where had {e} gone to school?",
            "Where was {e} educated?",
            "In which town were the school years of {e} spent?",
            "At which place was the school of {e}?",
        ),
        (
            "Where had {e} learned to read and write?",
            "In which town was {e} once a schoolchild?",
        ),
    ),
    Relation(
        "training",
        "officer",
        "person",
        (
            "{S} had been apprenticed to {a}",
            "{S} had learned the work under {a}",
            "{a} had trained {O}",
            "{S} had served seven years under {a}",
            "{P} old teacher was {a}",
        ),
        (
            "To whom had {e} been apprenticed?",
            "Who had trained {e}?",
            "Under whom had {e} learned the work?",
            "Who was the teacher of {e}?",
        ),
        ("Whose pupil had {e} been?", "Who had passed on the skill to {e}?"),
    ),
    Relation(
        "salary",
        "officer",
        "money",
        (
            "{S} was paid {a} a year",
            "{P} yearly wage was {a}",
            "the council allowed {O} {a} a year",
            "{S} drew {a} each year from the town chest",
            "{a} a year was thought enough for {O}",
        ),
        (
            "How much was {e} paid a year?",
            "What was the yearly wage of {e}?",
            "What did the council allow {e} each year?",
            "How much did {e} draw each year?",
        ),
        ("What did {e} earn?", "What was the annual income of {e}?"),
    ),
    Relation(
        "bond",
        "officer",
        "money",
        (
            "{S} had given a bond of {a}",
            "{S} stood bound for {a}",
            "{P} bond was for {a}",
            "a bond of {a} was taken from {O}",
        ),
        (
            "How large was the bond of {e}?",
            "For what sum did {e} stand bound?",
            "What bond was taken from {e}?",
            "How much was the bond given by {e}?",
        ),
        (
            "How much security had {e} offered?",
            "What sum could {e} have forfeited?",
        ),
    ),
    Relation(
        "dwelling",
        "officer",
        "street",
        (
            "{S} lived in {a}",
            "{S} lodged in {a}",
            "{P} lodgings were in {a}",
            "{S} made a home in {a}",
            "the home of {N} was in {a}",
        ),
        (
            "Where did {e} live?",
            "In which street did {e} live?",
            "Where was the home of {e}?",
            "Where did {e} lodge?",
        ),
        (
            "Where did {e} sleep at night?",
            "At which private address could {e} be reached?",
        ),
    ),
    Relation(
        "workplace",
        "officer",
        "street",
        (
            "{S} worked from a desk in {a}",
            "{P} office was in {a}",
            "{S} received the public in {a}",
            "the working room of {N} was in {a}",
        ),
        (
            "Where was the office of {e}?",
            "In which street did {e} receive the public?",
            "Where did {e} work?",
            "Where was the working room of {e}?",
        ),
        (
            "Where did people go to see {e} on business?",
            "In which street did {e} spend the working day?",
        ),
    ),
    Relation(
        "oath",
        "officer",
        "date",
        (
            "{S} took the oath of office on {a}",
            "{S} was appointed on {a}",
            "{P} appointment is dated {a}",
            "on {a} {S} entered upon the duties",
            "the council appointed {O} on {a}",
        ),
        (
            "When did {e} take office?",
            "On what date was {e} appointed?",
            "When did the council appoint {e}?",
            "What is the date of the appointment of {e}?",
        ),
        (
            "Since when had {e} been in the service of the town?",
            "On which day did the work of {e} begin?",
        ),
    ),
    Relation(
        "reprimand",
        "officer",
        "lapse",
        (
            "{S} was reprimanded for {a}",
            "the council rebuked {O} for {a}",
            "{S} was blamed by the council for {a}",
            "{a} had brought {O} a reprimand",
            "{S} had to answer to the council for {a}",
        ),
        (
            "For what was {e} reprimanded?",
            "Why did the council rebuke {e}?",
            "For what did the council blame {e}?",
            "What brought {e} a reprimand?",
        ),
        ("What had {e} done wrong?", "Which lapse was held against {e}?"),
    ),
    # ---------------------------------------------------------------- merchant houses
    Relation(
        "purchase",
        "firm",
        "goods",
        (
            "{S} bought {a}",
            "{S} took delivery of {a}",
            "{a} were knocked down to {O}",
            "{P} purchase consisted of {a}",
            "{S} was the highest bidder for {a}",
        ),
        (
            "What did {e} buy?",
            "Which goods did {e} purchase?",
            "What was sold to {e}?",
            "Which goods were knocked down to {e}?",
        ),
        (
            "What did {e} acquire?",
            "Which merchandise passed into the hands of {e}?",
        ),
    ),
    Relation(
        "sale",
        "firm",
        "goods",
        (
            "{S} sold {a}",
            "{S} parted with {a}",
            "{S} found a buyer for {a}",
            "{a} were sold by {O}",
        ),
        (
            "What did {e} sell?",
            "Which goods were sold by {e}?",
            "With what did {e} part?",
            "For which goods did {e} find a buyer?",
        ),
        (
            "What did {e} dispose of?",
            "Which merchandise went out of the hands of {e}?",
        ),
    ),
    Relation(
        "price",
        "firm",
        "money",
        (
            "{S} gave {a} for {her} lot",
            "{S} settled {her} account with {a}",
            "the bargain cost {O} {a}",
            "{P} bill came to {a}",
            "{a} was the price asked of {O}",
        ),
        (
            "How much did {e} give for its lot?",
            "What did the bargain cost {e}?",
            "To how much did the bill of {e} come?",
            "What price was asked of {e}?",
        ),
        (
            "How much did the purchase set {e} back?",
            "For what price did {e} get its lot?",
        ),
    ),
    Relation(
        "loan",
        "firm",
        "money",
        (
            "{S} had borrowed {a}",
            "{P} debt stood at {a}",
            "{S} owed the bank {a}",
            "a loan of {a} had been made to {O}",
        ),
        (
            "How much had {e} borrowed?",
            "At what sum did the debt of {e} stand?",
            "What did {e} owe?",
            "How large was the loan made to {e}?",
        ),
        (
            "What sum had {e} to pay back?",
            "For how much had {e} gone into debt?",
        ),
    ),
    Relation(
        "factor",
        "firm",
        "person",
        (
            "{a} acted as factor for {O}",
            "{P} factor in the town was {a}",
            "{S} did {her} business through {a}",
            "{S} was represented by {a}",
            "{S} had named {a} as {her} factor",
        ),
        (
            "Who acted as factor for {e}?",
            "Who represented {e}?",
            "Through whom did {e} do its business?",
            "Who was the factor of {e}?",
        ),
        ("Who was the agent of {e}?", "Who handled the affairs of {e}?"),
    ),
    Relation(
        "witness",
        "firm",
        "person",
        (
            "{a} witnessed the contract of {N}",
            "the contract of {N} bears the mark of {a} as witness",
            "{P} contract was signed in the presence of {a}",
            "{S} called in {a} as witness to {her} contract",
            "{S} signed with {a} as witness",
        ),
        (
            "Who witnessed the contract of {e}?",
            "Whose mark as witness does the contract of {e} bear?",
            "In whose presence was the contract of {e} signed?",
            "Whom did {e} call in as witness?",
        ),
        ("Who looked on while {e} signed?", "Who could swear to the contract of {e}?"),
    ),
    Relation(
        "branch",
        "firm",
        "port",
        (
            "{S} kept a branch at {a}",
            "{S} had a second counting-house at {a}",
            "{P} branch was at {a}",
            "a junior partner of {N} looked after the branch at {a}",
        ),
        (
            "Where did {e} keep a branch?",
            "Where was the second counting-house of {e}?",
            "In which port did {e} have a branch?",
            "Where was the branch of {e}?",
        ),
        ("In which other port was {e} established?", "Where abroad did {e} have an office?"),
    ),
    Relation(
        "warehouse",
        "firm",
        "street",
        (
            "{S} stored {her} goods in {a}",
            "{P} warehouse stood in {a}",
            "{S} rented a warehouse in {a}",
            "the warehouse of {N} was in {a}",
            "the goods of {N} were kept under lock in {a}",
        ),
        (
            "Where did {e} store its goods?",
            "Where did the warehouse of {e} stand?",
            "In which street were the goods of {e}?",
            "Where was the warehouse of {e}?",
        ),
        ("To which address were the carts of {e} sent to unload?", "Where did {e} keep its stock?"),
    ),
    Relation(
        "counter",
        "firm",
        "street",
        (
            "{S} received {her} customers in {a}",
            "{P} main office was in {a}",
            "{S} kept {her} books in {a}",
            "the partners of {N} met in {a}",
        ),
        (
            "Where was the main office of {e}?",
            "In which street did the partners of {e} meet?",
            "Where did {e} keep its books?",
            "Where did {e} receive its customers?",
        ),
        (
            "Where would a customer have called on {e}?",
            "From which street was {e} run?",
        ),
    ),
    Relation(
        "signing",
        "firm",
        "date",
        (
            "{S} signed {her} contract on {a}",
            "{P} contract is dated {a}",
            "on {a} {S} put {her} seal to the contract",
            "{S} closed the bargain on {a}",
            "the contract of {N} was signed on {a}",
        ),
        (
            "When did {e} sign its contract?",
            "What is the date of the contract of {e}?",
            "On what date did {e} seal the contract?",
            "When did {e} close the bargain?",
        ),
        (
            "On which day was the business of {e} concluded?",
            "When did {e} commit itself in writing?",
        ),
    ),
    Relation(
        "payment",
        "firm",
        "date",
        (
            "{S} made payment on {a}",
            "{S} cleared {her} account on {a}",
            "{P} payment is entered under {a}",
            "on {a} {S} brought the money",
        ),
        (
            "When did {e} pay?",
            "On what date did {e} clear its account?",
            "When did {e} make payment?",
            "What was the date of the payment by {e}?",
        ),
        (
            "On which day did {e} settle up?",
            "When was the money received from {e}?",
        ),
    ),
    Relation(
        "offence",
        "firm",
        "offence",
        (
            "{S} was fined for {a}",
            "the bench fined {O} for {a}",
            "{S} was called before the bench and fined for {a}",
            "{a} earned {O} a fine",
            "{S} had to pay a fine for {a}",
        ),
        (
            "For what was {e} fined?",
            "Why did the bench fine {e}?",
            "What earned {e} a fine?",
            "Why was {e} made to pay a fine?",
        ),
        ("Of what was {e} found guilty?", "Which breach of the rules was proved against {e}?"),
    ),
)

# ------------------------------------------------------------------------ words
# Lists that are cut between the splits, so that a name or a value met in training is not
# met again in the test. Two lists side by side are multiplied.

SURNAMES = (
    words("""
        Ask Bram Brock Cald Cask Cren Dall Dray Eld Esk Fald Garr Gorm Hask Hend Ild Jarr Kell
        Kett Lund Marr Meck Nabb Ott Pell Quill Rask Rudd Sarn Skell Starr Tarr Thrap Ulm Varr
        Venn Wadd Wend Yarr Zell
    """),
    words("""
        aby adine aker aster ell ender erby eridge erman ick iford igan ilow imore ingale ish
        istow itt over oway owby umber
    """),
)
MEN = words("""
    Abel Ambrose Barnaby Caleb Crispin Ezra Gideon Hugo Ivo Jasper Josiah Lambert Linus Matthias
    Nathaniel Osric Piers Quentin Reuben Roland Silas Tobias Valentine Wilfred
""")
WOMEN = words("""
    Ada Agnes Beatrix Bridget Cecily Clemence Dorcas Edith Esther Frances Hester Ida Isolde
    Judith Keziah Letitia Mabel Muriel Olive Prudence Rosamund Sabina Tabitha Ursula Winifred
""")
FIRMS = (
    "{} and Daughters",
    "{} and Sons",
    "{} Brothers",
    "{} and Nephew",
    "Widow {} and Son",
    "{} and {}",
    "{} and {}",
    "{}, {} and Company",
)

SHIPS = (
    words("""
        Grey Honest Patient Silver Northern Quiet Merry Golden Faithful Lonely Bold Scarlet
        Humble Winter Morning Evening Crooked Lucky Proud Gentle Little Sable Brave Wandering
        Weary Bright Distant Amber Obedient Painted
    """),
    words("""
        Heron Magpie Plover Petrel Linnet Wren Curlew Gannet Lapwing Swift Otter Vixen Hare
        Badger Stag Mare Lamb Hound Salmon Dolphin Anchor Lantern Compass Sickle Thimble Ribbon
        Garland Crown Sceptre Candle Beacon Bell Fiddle Drum Trumpet Harp Rose Thistle Bramble
        Clover Willow Hawthorn Rowan Juniper Myrtle Briar Acorn Harvest Venture Promise Bargain
        Errand Fortune Pilgrim Shepherd Weaver Miller Hermit Piper Tinker Sailor Orphan Daughter
        Cousin Neighbour Stranger Traveller Minstrel Dancer Maiden Duchess Countess Abbess Comet
        Planet Rainbow Tempest Breeze Meadow Orchard
    """),
)
RIGS = words("brig sloop ketch schooner barque cutter galliot hoy lugger snow")

PORTS = (
    words("""
        Arven Branna Corm Dalve Ester Farra Gulle Helda Invar Jorra Kessel Lodda Morra Nettle
        Orla Pensa Quarra Skarra Thurra Ulver Vella Wexa Yarra Tolla
    """),
    words("""
        haven holm mouth ness port sound staithe strand voe wick garth minster ferry pool
    """),
)
QUAYS = (
    words("""
        Tallow Cockle Mussel Anvil Capstan Cooper Crane Cuttle Eel Ember Fishwife Flagstone
        Gallows Gimlet Hawser Herring Kelp Kettle Limpet Mallet Marline Mitre Needle Oakum
        Oyster Packet Periwinkle Pitch Powder Raker Rope Rudder Saddle Shovel Signal Spindle
        Staple Swan Thatch Tiller Toll Turnstile Walnut Whelk Windlass Winch Kipper Grapnel
    """),
    words("Quay Wharf Steps Stairs Jetty Slip"),
)
STREETS = (
    words("""
        Almond Apple Barley Beehive Besom Bodkin Button Cherry Cider Cobbler Copper Cordwain
        Cricket Curfew Dovecote Drover Ferret Fiddler Flax Garlic Ginger Glover Gooseberry
        Hatter Honey Inkhorn Ivy Lavender Lilac Mercer Mustard Nightcap Nutmeg Parchment Pepper
        Plum Potter Quince Rosemary Saffron Sexton Tanner Thyme Tinder Turnip Vinegar Wafer
        Wimple
    """),
    words("Lane Street Row Court Close Alley"),
)

GOODS = phrases("""
    barrels of salted herring / casks of lamp oil / sacks of barley / bales of raw wool
    chaldrons of sea coal / chests of tea / hogsheads of tobacco / bundles of dried cod
    kegs of nails / crates of window glass / jars of honey / barrels of pitch
    coils of hemp rope / loads of oak plank / sacks of rye flour / tubs of butter
    wheels of hard cheese / bolts of sailcloth / rolls of blue linen / bars of pig iron
    sheets of copper / boxes of candles / baskets of lemons / casks of red wine
    firkins of soft soap / bags of hops / barrels of cider / bushels of oats / sacks of malt
    crates of roof slates / slabs of grey granite / bundles of willow rods
    barrels of gunpowder / chests of indigo / bags of black pepper / boxes of raisins
    jars of olive oil / sacks of almonds / loaves of sugar / bales of tanned hides
    bundles of goose quills / reams of writing paper / casks of vinegar / barrels of tallow
    cartloads of chalk / crates of clay pipes / cases of brass buttons / barrels of train oil
    sacks of dried peas / bags of mustard seed / bales of sheepskins
    packs of woollen stockings / cases of pewter plates / stacks of pine boards
    casks of brandy / drums of figs / boxes of sealing wax / barrels of salt pork
    sacks of wheat / tubs of lard / crates of earthenware / bundles of barrel staves
    bags of feathers / cases of clocks / casks of lime juice / bales of cotton thread
    barrels of oysters / loads of foreign fir / hampers of smoked eels / sacks of rock salt
    casks of whale blubber / bolts of green baize / cases of mirrors / bags of coffee
    barrels of anchovies / boxes of oranges / bundles of cane / kegs of white lead
    sacks of charcoal / chests of cinnamon
""")
CAUSES = phrases("""
    a sprung bowsprit / fever among the crew / ice in the upper channel
    a quarrel over wages / a missing bill of lading / a leak below the waterline
    the loss of an anchor / a contrary wind / the arrest of the cook
    a mutiny over the biscuit / a cracked rudder / fog on the bar / the want of ballast
    a dispute about the salvage / rats in the bread room / a broken windlass
    the death of the mate / a lawsuit over the last freight / a rotten foremast
    a bent tiller / the desertion of the carpenter / a short supply of fresh water
    the spring tides / a forged certificate of health / a fire in the galley
    the theft of the compass / a claim by the sailmaker / a rumour of privateers
    damp in the powder / a shortage of lighters / the illness of the surgeon
    a torn mainsail / a collision with the ferry / a run of northerly gales
    a search for smuggled lace / an error in the manifest / the seizure of the papers
    worm in the planking / a strike of the porters / an unpaid chandler's bill
    mud in the dock entrance / the lateness of the mails / a jammed capstan
    a wedding in the mate's family / a fouled cable / an embargo on grain
    the escape of two prisoners / a shifted cargo / a parted hawser
    the want of a second mate / a choked pump / a doubtful passport
    the drunkenness of the gunner / the collapse of a crane / a warrant against the boatswain
    a storm from the east / the late return of the boats / an inspection of the rigging
    the burial of a passenger / a feud between two watches
""")
LAPSES = phrases("""
    losing the key of the toll chest / leaving the gate unlocked / forging a receipt
    sleeping through the evening bell / lending public money to a cousin
    swearing in the council chamber / copying a sealed letter / letting the lamps run dry
    spilling ink over the charter / mislaying the plague ordinance
    quarrelling with the chaplain / opening another man's mail / pawning the silver inkstand
    reading out a false date / wearing a borrowed chain / ringing a false alarm
    entering a dead sailor on the payroll / keeping pigs in the customs yard
    fishing from the town bridge / accepting a cask of rum / arriving late on quarter day
    riding a horse across the ropewalk / drying nets on the town hall railings
    selling old files as wrapping paper / playing dice with the night watch
    burning the wrong bundle of letters / insulting a visiting judge
    taking the official boat to a picnic / falling asleep during a sermon
    adding up a column wrongly / letting a prisoner go home for supper
    feeding the office cat on public herring / hanging the town flag upside down
    giving away a spare set of keys / refusing to wear the gown of office
    gossiping about a closed hearing / tearing a page from the minutes
    growing onions on the rampart / whistling at the mayor's funeral
    boarding a ship in quarantine
""")
OFFENCES = phrases("""
    selling short measure / keeping a fire after curfew / blocking the fairway with rafts
    hiding brandy under turnips / breaking the seal on a cellar / watering the rum
    landing hides by night / burning rubbish on the pier / refusing a constable entry
    emptying slops into the dock / hoarding flour in a hungry month / moving a boundary stone
    using unstamped weights / mixing sand with the sugar / overloading the public crane
    bribing a tide-waiter / trading on a holy day / painting over a load mark
    dumping ballast in the channel / stacking timber on the footway
    hiring unlicensed boatmen / driving carts through the fish market
    undercutting the fixed price of bread / cutting a rival's mooring lines
    refusing to pay the lamp rate / felling a tree in the churchyard
    storing gunpowder beside a bakery / passing clipped coin / selling spoiled meat
    dyeing old cloth and calling it new / leaving a wreck unmarked
    building a stair across the lane / trading with a closed port / ignoring a summons
    spreading a rumour of plague / unloading before the bell / weighing with a wet scale
    stretching canvas before the sale / tapping the town's water pipe
    letting barrels roll into the street
""")
OFFICES = phrases("""
    harbour-master / keeper of the great crane / clerk of the weights / water-bailiff
    collector of tolls / searcher of casks / warden of the lights / ballast-master
    gauger of wines / ringer of the tide bell / overseer of pilots / measurer of grain
    bridge-reeve / keeper of the sluice / town crier / registrar of wrecks / assayer of coin
    inspector of cordage / porter of the sea gate / master of the ropewalk / meter of coals
    surveyor of hulls / comptroller of the customs / steward of the almshouse
    keeper of the rolls / captain of the night watch / dock-reeve / examiner of seamen
    sealer of cloth / treasurer of the light dues / warden of the fish market
    sexton of the sailors' chapel / receiver of lost goods / judge of small debts
    packer of herring / keeper of the chart room / master of the grammar school
    town physician / clerk of the signals / warden of the timber pond
""")

# ------------------------------------------------------------- shared by all splits

SEASONS = {
    "winter": ("January", "February", "March"),
    "spring": ("April", "May", "June"),
    "summer": ("July", "August", "September"),
    "autumn": ("October", "November", "December"),
}
# Dates of the season after: a ship does not sail before she has arrived.
LATER = ("departure", "payment")

OPENINGS = (
    "The book for the {season} of {year} is written in a careful hand.",
    "These entries belong to the {season} of {year}.",
    "What follows was copied from the registers of the town for the {season} of {year}.",
    "The {season} of {year} fills many pages of the register.",
    "Little was left out when the accounts for the {season} of {year} were drawn up.",
    "In the {season} of {year} the desk at the customs house was seldom empty.",
    "A bundle of papers tied with green tape is marked with the {season} of {year}.",
    "The {season} of {year} was remembered in the town as a busy one.",
    "Several matters came before the clerks in the {season} of {year}.",
    "The leaf for the {season} of {year} is stained but can still be read.",
    "The {season} of {year} opened with fine weather and a full roadstead.",
    "Trade was slow in the {season} of {year} and the clerks wrote at length.",
    "Of the {season} of {year} only a few pages have come down to us.",
    "The council ordered a fair copy of everything entered in the {season} of {year}.",
    "Two clerks shared the writing in the {season} of {year}.",
    "The {season} of {year} began a new volume of the register.",
)

# How a new entity may be brought in before anything is said of it.
INTRODUCTIONS = {
    "ship": (
        "Next in the book stands {full}",
        "The following entry concerns {full}",
        "More space is given to {full}",
        "The clerk then turned to {full}",
        "On the next line stands {full}",
        "The same leaf has room for {full}",
    ),
    "officer": (
        "Next on the list of the town's servants stands {full}",
        "A separate page is given to {full}",
        "The roll then comes to {full}",
        "Something is also said of {full}",
        "The town had another servant in {full}",
        "The same sheet mentions {full}",
    ),
    "firm": (
        "The ledger then turns to {full}",
        "Another page belongs to {full}",
        "Next among the merchants comes {full}",
        "The clerk also dealt with {full}",
        "A new column begins with {full}",
        "There is a separate account for {full}",
    ),
}

LEADS = (
    "It is noted that",
    "The clerk adds that",
    "A note in the margin says that",
    "The same book shows that",
    "It appears that",
)

# Sentences with no fact that is asked: no name, no date, no sum.
REMARKS = (
    "The page is ruled in red and the margins are full of small corrections.",
    "Rain had got in at the window and the ink has run a little.",
    "Nobody at the customs house thought any of this unusual.",
    "A later reader has drawn a small fish beside the entry.",
    "Copies were sent up the hill to the council in the usual way.",
    "Gulls had fouled the steps and the boys were paid to sweep them.",
    "The fair was on and every bed in the town was taken.",
    "The clerk sanded the page and went home to supper.",
    "There was grumbling in the taverns but no complaint was lodged.",
    "Most of the talk that week was of the price of bread.",
    "The tide tables for the month are pinned to the same leaf.",
    "Part of the sheet has been eaten by mice.",
    "The handwriting changes here and the spelling grows worse.",
    "Children were forbidden the waterside until the carts had gone.",
    "The seal on the document is broken but complete.",
    "An older copy of these lines was lost when the archive flooded.",
    "No one troubled to ask what the neighbours made of it.",
    "Lamps were lit early because of the mist.",
    "The council met twice and rose both times without a vote.",
    "A blot hides the next word and it has never been restored.",
    "The usual fees were paid and the usual jokes were made.",
    "The dredgers had stopped work for want of a new chain.",
    "Such matters were read aloud on market days.",
    "The chapel roof was being mended and the hammering went on all day.",
    "Every line was checked against the tally sticks.",
    "The ropewalk stood idle and its people were set to mending nets.",
    "Fresh paper had come at last and the old sheets were sold to the fishmongers.",
    "The entry was read over by candlelight and found correct.",
    "A dog slept through the whole proceeding.",
    "The new scales had not yet come and the old ones were not trusted.",
    "A string of mules blocked the hill road for most of the day.",
    "Some figures have been scratched out and written again above the line.",
    "It was the custom to read the list twice and this was done.",
    "Sailmakers had spread their canvas over half the waterfront.",
    "Nothing further was heard of the matter.",
    "The binder has trimmed this leaf too closely and a few letters are gone.",
    "A lamp had been left burning on the pier all night.",
    "Fishing was poor and the boats stayed out late.",
    "The corner of the page is folded down as if to mark the place.",
    "The schoolmaster brought his pupils to see how the books were kept.",
    "Salt had eaten through the hinges of the strongroom door.",
    "The bells were silent because the ropes had been taken down for repair.",
    "A strong smell of tar hung over the whole quarter.",
)
